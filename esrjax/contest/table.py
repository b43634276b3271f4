"""A ranking as text, in the form of the report's Table 1."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esrjax.contest.rank import Line, Ranking, Standing, Track

_NOTHING = "-"
_WORDS = ("Team", "Method")  # the columns that are not numbers
_SCORES: Mapping[Track, str] = {
    "runtime": "Runtime score",
    "params": "Params score",
    "flops": "FLOPs score",
    "main": "Main score",
}


@dataclass(frozen=True, kw_only=True)
class _Script:
    """How a markup parts cells, and writes words, a score, and a PSNR under its floor."""

    between: str
    words: Callable[[str], str]
    score: Callable[[str], str]
    missed: Callable[[str], str]


_MARKDOWN = _Script(
    between=" | ",
    words=lambda text: text.replace("|", r"\|"),
    score=lambda text: text,
    missed=lambda text: f"*{text}*",
)
_LATEX = _Script(
    between=" & ",
    words=lambda text: re.sub(r"([&%$#_{}])", r"\\\1", text),
    score=lambda text: re.sub(r"(.+)e(\d+)", r"$\1 \\times 10^{\2}$", text),
    missed=lambda text: rf"\underline{{{text}}}",
)


def printed(score: float) -> str:
    """`5.80`, `893.84`, and from a thousand on `6.76e3`."""
    if round(score, 2) < 1000:
        return f"{score:.2f}"
    return re.sub(r"e\+0*", "e", f"{score:.2e}")


def markdown(ranking: Ranking) -> str:
    """A table for each standing that occurs, below a sentence that says what it means."""
    head, blocks = _texts(ranking, _MARKDOWN)
    rule = " | ".join(_markdown_rule(heading) for heading in head.split(" | "))
    parts = [f"**{ranking.rules.name}.** {scale(ranking)}"]
    for standing, lines in blocks.items():
        table = "\n".join(f"| {line} |" for line in [head, rule, *lines])
        parts += [meaning(standing, ranking), table]
    return "\n\n".join([*parts, *ranking.notes]) + "\n"


def latex(ranking: Ranking) -> str:
    r"""One `tabular` with the rules of booktabs, the standings parted by their meaning."""
    head, blocks = _texts(ranking, _LATEX)
    sides = ["l" if heading.strip() in _WORDS else "r" for heading in head.split(" & ")]
    lines = [rf"\begin{{tabular}}{{{''.join(sides)}}}", r"\toprule", rf"{head} \\"]
    for standing, block in blocks.items():
        said = _LATEX.words(meaning(standing, ranking))
        lines += [r"\midrule", rf"\multicolumn{{{len(sides)}}}{{c}}{{{said}}} \\", r"\midrule"]
        lines += [rf"{line} \\" for line in block]
    notes = [f"% {note}" for note in [scale(ranking), *ranking.notes]]
    return "\n".join([*notes, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _texts(ranking: Ranking, script: _Script) -> tuple[str, dict[Standing, list[str]]]:
    """The heading and, by standing, the lines, all with their columns aligned."""
    cells = [_cells(line, ranking, script) for line in ranking.lines]
    columns = {name: [each[name] for each in cells] for name in (cells[0] if cells else {})}
    aligned = [_aligned(name, column) for name, column in columns.items() if _says(column)]
    head, *body = map(script.between.join, zip(*aligned, strict=True))
    by_standing: dict[Standing, list[str]] = {}
    for line, text in zip(ranking.lines, body, strict=True):
        by_standing.setdefault(line.standing, []).append(text)
    return head, by_standing


def _cells(line: Line, ranking: Ranking, script: _Script) -> dict[str, str]:
    """Heading -> cell, for every column that a ranking can have."""
    row, decimals = line.row, ranking.rules.score.decimals
    elsewhere = sorted({name for row in ranking.rows for name in row.psnr_elsewhere})
    harness = sorted({name for row in ranking.rows for name in row.harness_ms})
    return {
        "Rank": str(line.ranks["main"]) if line.ranks else _NOTHING,
        "Team": script.words(row.team),
        "Method": script.words(row.method),
        "PSNR valid": _psnr(line, "valid", row.psnr_valid, script),
        "PSNR test": _psnr(line, "test", row.psnr_test, script),
        **{f"PSNR {name}": _number(row.psnr_elsewhere.get(name), 2) for name in elsewhere},
        "valid, ms": _number(row.runtime_valid_ms, decimals.runtime),
        "test, ms": _number(row.runtime_test_ms, decimals.runtime),
        **{
            f"harness {name}, ms": _number(row.harness_ms.get(name), decimals.runtime)
            for name in harness
        },
        "Runtime, ms": _number(row.runtime_ms, decimals.runtime),
        "Baseline in turn, ms": _number(row.baseline_ms, decimals.runtime),
        "Params, M": _number(row.params_m, decimals.params),
        "FLOPs, G": _number(row.flops_g, decimals.flops),
        **{heading: _score(line, track, script) for track, heading in _SCORES.items()},
    }


def _number(value: float | None, decimals: int) -> str:
    return _NOTHING if value is None else f"{value:.{decimals}f}"


def _psnr(line: Line, name: str, value: float | None, script: _Script) -> str:
    text = _number(value, 2)
    return script.missed(text) if name in line.missed else text


def _score(line: Line, track: Track, script: _Script) -> str:
    text = script.score(printed(line.score(track)))
    return f"{text} ({line.ranks[track]})" if line.ranks else text


def _says(column: list[str]) -> bool:
    return any(cell != _NOTHING for cell in column)


def _aligned(heading: str, column: list[str]) -> list[str]:
    """Heading and cells at one width: words to the left, numbers to the right."""
    width = max(map(len, [heading, *column]))
    side = "<" if heading in _WORDS else ">"
    return [f"{cell:{side}{width}}" for cell in [heading, *column]]


def _markdown_rule(heading: str) -> str:
    width = len(heading)
    return "-" * width if heading.strip() in _WORDS else "-" * (width - 1) + ":"


def scale(ranking: Ranking) -> str:
    """What the scores are relative to."""
    of, decimals = ranking.reference, ranking.rules.score.decimals
    return (
        f"Scores are exp({ranking.rules.score.factor:g} · value / baseline), less is better; "
        f"the baseline has {of.runtime_ms:.{decimals.runtime}f} ms, "
        f"{of.params_m:.{decimals.params}f} M parameters, {of.flops_g:.{decimals.flops}f} G FLOPs."
        f"{_in_turn(ranking)}{_measured(ranking)}"
    )


def _in_turn(ranking: Ranking) -> str:
    if ranking.base == "published" or not any(row.baseline_ms for row in ranking.rows):
        return ""
    return " A runtime is scored against the baseline timed in turn with it, where there is one."


def _measured(ranking: Ranking) -> str:
    """Where and how, in so far as the rows say it; ranked together, they all say the same."""
    row = ranking.lines[0].row
    timed = f" Timed on {row.device}, {row.conditions}." if row.device else ""
    return timed + (f" PSNR by the metric {row.spec!r}." if row.spec else "")


def meaning(standing: Standing, ranking: Ranking) -> str:
    floors = ranking.rules.floors
    bar = f"{floors.valid:.2f} dB on valid and {floors.test:.2f} dB on test"
    return {
        "ranked": f"Ranked: at least {bar}."
        if ranking.floors
        else "Ranked by score alone: no PSNR was asked for, so this is no ranking of the contest.",
        "unjudged": f"Not ranked: no PSNR on the contest's own sets to ask for {bar}.",
        "missed": f"Not ranked: the following miss the PSNR threshold of {bar}.",
        "baseline": "Not ranked: the baseline of the organisers.",
    }[standing]
