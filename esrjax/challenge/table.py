"""Ranked tables in Markdown and LaTeX, in the form of the challenge report's Table 1."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from esrjax.challenge.rank import RankedEntry, Ranking, Status, Track

_EMPTY = "-"
_TEXT_COLUMNS = ("Team", "Method")  # left-aligned and escaped; all others are numbers
_SCORE_HEADINGS: Mapping[Track, str] = {
    "runtime": "Runtime score",
    "params": "Params score",
    "flops": "FLOPs score",
    "main": "Main score",
}


@dataclass(frozen=True, kw_only=True)
class _Markup:
    """How a markup language writes a row.

    Attributes:
        separator: Text between two cells.
        escape: Escapes names and sentences.
        score: Formats a score that `format_score` has written.
        below_threshold: Marks a PSNR below its threshold.
    """

    separator: str
    escape: Callable[[str], str]
    score: Callable[[str], str]
    below_threshold: Callable[[str], str]


_MARKDOWN = _Markup(
    separator=" | ",
    escape=lambda text: text.replace("|", r"\|"),
    score=lambda text: text,
    below_threshold=lambda text: f"*{text}*",
)
_LATEX = _Markup(
    separator=" & ",
    escape=lambda text: re.sub(r"([&%$#_{}])", r"\\\1", text),
    score=lambda text: re.sub(r"(.+)e(\d+)", r"$\1 \\times 10^{\2}$", text),
    below_threshold=lambda text: rf"\underline{{{text}}}",
)


def format_score(score: float) -> str:
    """Format a score as the published table does: `5.80`, `893.84`, from 1000 on `6.76e3`."""
    # Rounded first: 999.996 would otherwise be written as 1000.00 instead of 1.00e3.
    if round(score, 2) < 1000:
        return f"{score:.2f}"
    return re.sub(r"e\+0*", "e", f"{score:.2e}")


def markdown(ranking: Ranking) -> str:
    """Return the ranking in Markdown: one table per status, each below a sentence about it."""
    head, blocks = _aligned_lines(ranking, _MARKDOWN)
    rule = " | ".join(_markdown_rule(heading) for heading in head.split(" | "))
    paragraphs = [f"**{ranking.rules.name}.** {describe_scale(ranking)}"]
    for status, lines in blocks.items():
        table = "\n".join(f"| {line} |" for line in [head, rule, *lines])
        paragraphs += [describe_status(status, ranking), table]
    return "\n\n".join([*paragraphs, *ranking.notes]) + "\n"


def latex(ranking: Ranking) -> str:
    r"""Return the ranking as one LaTeX `tabular` with booktabs rules, a section per status."""
    head, blocks = _aligned_lines(ranking, _LATEX)
    sides = ["l" if heading.strip() in _TEXT_COLUMNS else "r" for heading in head.split(" & ")]
    lines = [rf"\begin{{tabular}}{{{''.join(sides)}}}", r"\toprule", rf"{head} \\"]
    for status, block in blocks.items():
        title = _LATEX.escape(describe_status(status, ranking))
        lines += [r"\midrule", rf"\multicolumn{{{len(sides)}}}{{c}}{{{title}}} \\", r"\midrule"]
        lines += [rf"{line} \\" for line in block]
    notes = [f"% {note}" for note in [describe_scale(ranking), *ranking.notes]]
    return "\n".join([*notes, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _aligned_lines(ranking: Ranking, markup: _Markup) -> tuple[str, dict[Status, list[str]]]:
    """The header line and, by status, the lines of entries, with aligned columns."""
    cells = [_cells(entry, ranking, markup) for entry in ranking.entries]
    columns = {name: [row[name] for row in cells] for name in (cells[0] if cells else {})}
    aligned = [_align(name, column) for name, column in columns.items() if _has_values(column)]
    head, *body = map(markup.separator.join, zip(*aligned, strict=True))
    by_status: dict[Status, list[str]] = {}
    for entry, line in zip(ranking.entries, body, strict=True):
        by_status.setdefault(entry.status, []).append(line)
    return head, by_status


def _cells(entry: RankedEntry, ranking: Ranking, markup: _Markup) -> dict[str, str]:
    """Heading -> cell, for every column that a ranking can have."""
    row, decimals = entry.row, ranking.rules.score.decimals
    other_datasets = sorted({name for row in ranking.rows for name in row.psnr_other})
    protocol_datasets = sorted({name for row in ranking.rows for name in row.protocol_ms})
    return {
        "Rank": str(entry.ranks["main"]) if entry.ranks else _EMPTY,
        "Team": markup.escape(row.team),
        "Method": markup.escape(row.method),
        "PSNR valid": _psnr(entry, "valid", row.psnr_valid, markup),
        "PSNR test": _psnr(entry, "test", row.psnr_test, markup),
        **{f"PSNR {name}": _number(row.psnr_other.get(name), 2) for name in other_datasets},
        "valid, ms": _number(row.runtime_valid_ms, decimals.runtime),
        "test, ms": _number(row.runtime_test_ms, decimals.runtime),
        **{
            f"protocol {name}, ms": _number(row.protocol_ms.get(name), decimals.runtime)
            for name in protocol_datasets
        },
        "Runtime, ms": _number(row.runtime_ms, decimals.runtime),
        "Baseline interleaved, ms": _number(row.baseline_ms, decimals.runtime),
        "Params, M": _number(row.params_m, decimals.params),
        "FLOPs, G": _number(row.flops_g, decimals.flops),
        **{heading: _score(entry, track, markup) for track, heading in _SCORE_HEADINGS.items()},
    }


def _number(value: float | None, decimals: int) -> str:
    return _EMPTY if value is None else f"{value:.{decimals}f}"


def _psnr(entry: RankedEntry, split: str, value: float | None, markup: _Markup) -> str:
    text = _number(value, 2)
    return markup.below_threshold(text) if split in entry.below_threshold else text


def _score(entry: RankedEntry, track: Track, markup: _Markup) -> str:
    text = markup.score(format_score(entry.score(track)))
    return f"{text} ({entry.ranks[track]})" if entry.ranks else text


def _has_values(column: list[str]) -> bool:
    return any(cell != _EMPTY for cell in column)


def _align(heading: str, column: list[str]) -> list[str]:
    """Heading and cells padded to one width: text to the left, numbers to the right."""
    width = max(map(len, [heading, *column]))
    side = "<" if heading in _TEXT_COLUMNS else ">"
    return [f"{cell:{side}{width}}" for cell in [heading, *column]]


def _markdown_rule(heading: str) -> str:
    width = len(heading)
    return "-" * width if heading.strip() in _TEXT_COLUMNS else "-" * (width - 1) + ":"


def describe_scale(ranking: Ranking) -> str:
    """Return what the scores are relative to, and where and how runtimes were measured."""
    reference, decimals = ranking.reference, ranking.rules.score.decimals
    return (
        f"Scores are exp({ranking.rules.score.factor:g} · value / baseline), lower is better; "
        f"the baseline has {reference.runtime_ms:.{decimals.runtime}f} ms, "
        f"{reference.params_m:.{decimals.params}f} M parameters, "
        f"{reference.flops_g:.{decimals.flops}f} G FLOPs."
        f"{_describe_baseline(ranking)}{_describe_conditions(ranking)}"
    )


def _describe_baseline(ranking: Ranking) -> str:
    if ranking.baseline_source == "published" or not any(row.baseline_ms for row in ranking.rows):
        return ""
    return " A runtime is scored against the baseline timed interleaved with it, if there is one."


def _describe_conditions(ranking: Ranking) -> str:
    """Device, timing conditions and metric, if known; rows of a ranking have them in common."""
    row = ranking.entries[0].row
    timing = f" Timed on {row.device}, {row.conditions}." if row.device else ""
    return timing + (f" PSNR by the metric {row.spec!r}." if row.spec else "")


def describe_status(status: Status, ranking: Ranking) -> str:
    """Return a sentence on what a status means for the entries that have it."""
    thresholds = ranking.rules.psnr_thresholds
    required = f"{thresholds.valid:.2f} dB on valid and {thresholds.test:.2f} dB on test"
    return {
        "ranked": f"Ranked: at least {required}."
        if ranking.apply_thresholds
        else "Ranked by score alone: the PSNR thresholds were ignored, "
        "so this is not a ranking of the challenge.",
        "no_psnr": "Not ranked: no PSNR on the challenge's own splits, "
        f"where {required} are required.",
        "below_threshold": f"Not ranked: below the PSNR threshold of {required}.",
        "baseline": "Not ranked: the baseline of the organisers.",
    }[status]
