"""Ranked tables in Markdown and LaTeX, in the form of the challenge report's Table 1.

With what other outputs of a ranking share: its columns, and sentences on scale and statuses.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from esrjax.challenge.rank import RankedEntry, Ranking, Status, Track
from esrjax.challenge.results import Row
from esrjax.errors import printable

_EMPTY, UNKNOWN = "-", "unknown"
_TEXT_COLUMNS = ("Team", "Method", "Weights")  # left-aligned and escaped; all others are numbers
SCORE_LABELS: Mapping[Track, str] = {
    "runtime": "Runtime score",
    "params": "Params score",
    "flops": "FLOPs score",
    "main": "Main score",
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of every method.

    Attributes:
        key: Field of `Row`; `FIELD.DATASET` for a field that maps datasets to figures.
        label: Heading without the unit.
        unit: Unit of the figure.
        decimals: Decimals shown.
    """

    key: str
    label: str
    unit: str
    decimals: int

    def value(self, row: Row) -> float | None:
        """Return the figure of a row, or None if it has none."""
        name, _, dataset = self.key.partition(".")
        value = getattr(row, name)
        return value.get(dataset) if dataset else value

    def text(self, row: Row) -> str:
        """Return the figure of a row as text; `unknown`, or `-` if it has none."""
        value = self.value(row)
        missing = UNKNOWN if self.is_unknown(row) else _EMPTY
        return missing if value is None else f"{value:.{self.decimals}f}"

    def is_unknown(self, row: Row) -> bool:
        """Return whether this is the PSNR on a split of the challenge, known on the other one."""
        is_of_split = self.key in ("psnr_valid", "psnr_test")
        return is_of_split and self.value(row) is None and bool(row.psnr_by_split)

    def is_below_threshold(self, entry: RankedEntry) -> bool:
        """Return whether this is a PSNR of an entry that is below its threshold."""
        return self.key.removeprefix("psnr_") in entry.below_threshold


def columns(ranking: Ranking) -> Iterator[Column]:
    """Yield the columns in which at least one method has a figure, or a PSNR that is unknown."""
    decimals = ranking.rules.score.decimals
    others = sorted({name for row in ranking.rows for name in row.psnr_other})
    protocols = sorted({name for row in ranking.rows for name in row.protocol_ms})
    labels = [
        ("psnr_valid", "PSNR valid", "dB", 2),
        ("psnr_test", "PSNR test", "dB", 2),
        *((f"psnr_other.{name}", f"PSNR {name}", "dB", 2) for name in others),
        ("runtime_valid_ms", "Runtime valid", "ms", decimals.runtime),
        ("runtime_test_ms", "Runtime test", "ms", decimals.runtime),
        *(
            (f"protocol_ms.{name}", f"Protocol {name}", "ms", decimals.runtime)
            for name in protocols
        ),
        ("runtime_ms", "Runtime", "ms", decimals.runtime),
        ("baseline_ms", "Baseline interleaved", "ms", decimals.runtime),
        ("params_m", "Params", "M", decimals.params),
        ("flops_g", "FLOPs", "G", decimals.flops),
    ]
    for key, label, unit, digits in labels:
        column = Column(key=key, label=label, unit=unit, decimals=digits)
        if any(column.value(row) is not None or column.is_unknown(row) for row in ranking.rows):
            yield column


def format_score(score: float) -> str:
    """Format a score as the published table does: `5.80`, `893.84`, from 1000 on `6.76e3`."""
    # Rounded first: 999.996 would otherwise be written as 1000.00 instead of 1.00e3.
    if round(score, 2) < 1000:
        return f"{score:.2f}"
    return re.sub(r"e\+0*", "e", f"{score:.2e}")


def markdown(ranking: Ranking) -> str:
    """Return the ranking in Markdown: one table per status, each below a sentence about it."""
    head, blocks = _aligned_lines(ranking, latex=False)
    rule = " | ".join(_markdown_rule(heading) for heading in head.split(" | "))
    paragraphs = [f"**{ranking.rules.name}.** {describe_scale(ranking)}"]
    for status, lines in blocks.items():
        table = "\n".join(f"| {line} |" for line in [head, rule, *lines])
        paragraphs += [describe_status(status, ranking), table]
    return "\n\n".join([*paragraphs, *map(escape_markdown, ranking.notes)]) + "\n"


def latex(ranking: Ranking) -> str:
    r"""Return the ranking as one LaTeX `tabular` with booktabs rules, a section per status."""
    head, blocks = _aligned_lines(ranking, latex=True)
    sides = ["l" if heading.strip() in _TEXT_COLUMNS else "r" for heading in head.split(" & ")]
    lines = [rf"\begin{{tabular}}{{{''.join(sides)}}}", r"\toprule", rf"{head} \\"]
    for status, block in blocks.items():
        title = _escape(describe_status(status, ranking), latex=True)
        lines += [r"\midrule", rf"\multicolumn{{{len(sides)}}}{{c}}{{{title}}} \\", r"\midrule"]
        lines += [rf"{line} \\" for line in block]
    notes = [f"% {printable(note)}" for note in [describe_scale(ranking), *ranking.notes]]
    return "\n".join([*notes, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _aligned_lines(ranking: Ranking, *, latex: bool) -> tuple[str, dict[Status, list[str]]]:
    """The header line and, by status, the lines of entries, with aligned columns."""
    shown = list(columns(ranking))
    cells = [_cells(entry, shown, latex=latex) for entry in ranking.entries]
    rows = [list(cells[0]), *(list(row.values()) for row in cells)]
    aligned = [_align(*column) for column in zip(*rows, strict=True) if {*column[1:]} != {_EMPTY}]
    head, *body = map((" & " if latex else " | ").join, zip(*aligned, strict=True))
    by_status: dict[Status, list[str]] = {}
    for entry, line in zip(ranking.entries, body, strict=True):
        by_status.setdefault(entry.status, []).append(line)
    return head, by_status


def _cells(entry: RankedEntry, columns: Sequence[Column], *, latex: bool) -> dict[str, str]:
    """Heading -> cell."""
    cells = {
        "Rank": str(entry.ranks["main"]) if entry.ranks else _EMPTY,
        "Team": _escape(entry.row.team, latex=latex),
        "Method": _escape(entry.row.method, latex=latex),
        "Weights": entry.row.weights_origin or _EMPTY,
    }
    for column in columns:
        # `PSNR valid`; `valid, ms`; `protocol Set5, ms`; `Runtime, ms`
        label = column.label.removeprefix("Runtime ").replace("Protocol", "protocol", 1)
        text = column.text(entry.row)
        if column.is_below_threshold(entry):
            text = rf"\underline{{{text}}}" if latex else f"*{text}*"
        cells[label if column.unit == "dB" else f"{label}, {column.unit}"] = text
    for track, label in SCORE_LABELS.items():
        score = format_score(entry.score(track))
        if latex:
            score = re.sub(r"(.+)e(\d+)", r"$\1 \\times 10^{\2}$", score)
        cells[label] = f"{score} ({entry.ranks[track]})" if entry.ranks else score
    return cells


def _escape(text: str, *, latex: bool) -> str:
    return escape_latex(text) if latex else escape_markdown(text)


_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def escape_latex(text: str) -> str:
    """Return text for LaTeX: characters with a meaning, and control characters, are escaped."""
    return printable(text).translate(str.maketrans(_LATEX))


def escape_markdown(text: str) -> str:
    """Return text for a cell of a Markdown table: no markup, link, HTML or further cell."""
    return re.sub(r"([\\|<`*]|\](?=[(\[:]))", r"\\\1", printable(text))


def _align(heading: str, *column: str) -> list[str]:
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
    text = (
        f"Scores are exp({ranking.rules.score.factor:g} · value / baseline), lower is better; "
        f"the baseline has {reference.runtime_ms:.{decimals.runtime}f} ms, "
        f"{reference.params_m:.{decimals.params}f} M parameters, "
        f"{reference.flops_g:.{decimals.flops}f} G FLOPs."
    )
    if ranking.baseline_source == "measured" and any(row.baseline_ms for row in ranking.rows):
        text += (
            " A runtime is scored against the baseline timed interleaved with it, if there is one."
        )
    row = ranking.entries[0].row  # rows of a ranking have device, conditions and metric in common
    text += f" Timed on {row.device}, {row.conditions}." if row.device else ""
    return text + (f" PSNR by the metric {row.spec!r}." if row.spec else "")


def describe_status(status: Status, ranking: Ranking) -> str:
    """Return a sentence on what a status means for the entries that have it."""
    thresholds = ranking.rules.psnr_thresholds
    required = f"{thresholds.valid:.2f} dB on valid and {thresholds.test:.2f} dB on test"
    ranked = f"Ranked: at least {required}."
    if not ranking.apply_thresholds:
        ranked = "Ranked by score alone: the PSNR thresholds were ignored, "
        ranked += "so this is not a ranking of the challenge."
    return {
        "ranked": ranked,
        "no_psnr": f"Not ranked: PSNR is not known on both splits, where {required} are required.",
        "below_threshold": f"Not ranked: below the PSNR threshold of {required}.",
        "baseline": "Not ranked: the baseline of the organisers.",
    }[status]
