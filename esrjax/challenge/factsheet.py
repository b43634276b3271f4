"""Factsheet of a submission, with the sections of the NTIRE factsheets, in Markdown and LaTeX.

It is filled from the method, the measurements and the recipe. What only the team knows is a blank:
`TO BE FILLED: ...`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from esrjax.bench import Timing
from esrjax.challenge.record import ProtocolTiming, Result, ResultsEntry
from esrjax.challenge.submission import SPLITS, ThresholdCheck, memory_mib, threshold_text
from esrjax.challenge.table import escape_latex, escape_markdown
from esrjax.method import Method

BLANK = "TO BE FILLED: "
UNKNOWN_PSNR = "LR only: the organisers compute it from the SR images"
# What `method new` writes where the team writes its own text.
PLACEHOLDERS = ("my team", "title and URL")
DESCRIPTION_PLACEHOLDER = "describe the method in three sentences"
_LATEX_SYMBOLS = {"·": r"$\cdot$", "×": r"$\times$", "→": r"$\to$", "−": "--", "⁶": "$^6$"}
_MAX_COLUMNS = 4  # of stages in a table; of more, each has a table of its own
_REMARKS = ("name", "ours", "unspecified")  # fields of a stage that are no settings

Table = Sequence[Sequence[str]]  # the first row is the header


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a factsheet.

    Attributes:
        title: Its heading.
        paragraphs: Text before the list.
        items: A list of lines.
        tables: Caption -> table.
    """

    title: str
    paragraphs: Sequence[str] = ()
    items: Sequence[str] = ()
    tables: Mapping[str, Table] | None = None


@dataclass(frozen=True, kw_only=True)
class FactsheetData:
    """What a factsheet is filled from.

    Attributes:
        key: Key of the submission, like `23_NAME`.
        method: The method.
        result: Everything measured of the model.
        entry: Its entry in results.json.
        checks: Its PSNR against the thresholds.
        training: Lines about the training data.
        recipe: The recipe as a JSON document, every default included; None if it is unknown.
        external: Weights that the recipe takes from outside; None if it is unknown.
        weights: Lines about the weights.
        hparams: Hyperparameters that differ from the method's defaults.
    """

    key: str
    method: Method
    result: Result
    entry: ResultsEntry
    checks: Sequence[ThresholdCheck]
    training: Sequence[str]
    recipe: str | None
    external: Sequence[str] | None
    weights: Sequence[str]
    hparams: Mapping[str, Any]


def factsheet(data: FactsheetData) -> tuple[Section, ...]:
    """Return the sections of a factsheet."""
    return (
        Section(title="Team", items=_team(data)),
        _method_section(data),
        Section(title="Complexity", tables={"": _figures_table(_complexity(data))}),
        _training_section(data),
        Section(title="Testing", items=_testing(data)),
        Section(title="Ensembles and fusion", items=[_NO_ENSEMBLE]),
        _results_section(data),
        Section(title="Implementation", items=_implementation(data)),
        Section(
            title="References", items=[fill(data.method.paper, "the paper"), blank("others cited")]
        ),
        Section(
            title="Other",
            items=[blank("whether a workshop paper is planned"), blank("comments, if any")],
        ),
    )


def blank(text: str) -> str:
    """Return a blank that the team fills in."""
    return f"{BLANK}{text}"


def blanks(sections: Sequence[Section]) -> list[str]:
    """Return what the team has still to fill in, `Team leader: name`, in order."""
    lines = [line for section in sections for line in (*section.paragraphs, *section.items)]
    return [line.replace(BLANK, "") for line in lines if BLANK in line]


# --- sections ---

_NO_ENSEMBLE = "none: SR images are single passes of one network, without self-ensemble or fusion"


def fill(text: str | None, name: str) -> str:
    """Return the text, or a blank if the method does not have it or it is a placeholder."""
    text = (text or "").strip()
    is_placeholder = text in PLACEHOLDERS or DESCRIPTION_PLACEHOLDER in text
    return blank(name) if not text or is_placeholder else text


def _team(data: FactsheetData) -> list[str]:
    unknown = {
        "Team leader": "name",
        "Address, phone, e-mail of the leader": "contact",
        "Other members": "names",
        "Affiliations": "of each member, and with sponsors of the challenge",
        "Website": "URL, if any",
        "User names on the evaluation server": "development and test phase",
        "Best entries on the evaluation server": "development and test phase",
        "Code, weights and SR images": "URLs",
    }
    return [
        f"Team: {fill(data.method.team, 'name of the team')}",
        f"Model: {data.key}",
        *(f"{name}: {blank(text)}" for name, text in unknown.items()),
        f"License of the code: {data.method.license}",
    ]


def _method_section(data: FactsheetData) -> Section:
    text = fill(data.method.description, "general description of the method")
    defaults = data.method.default_hparams() | dict(data.hparams)
    external = None if data.external is None else ", ".join(data.external)
    trained_alone = "none: weights start from random values"
    return Section(
        title="Method",
        paragraphs=[" ".join(paragraph.split()) for paragraph in text.split("\n\n")],
        items=[
            "Hyperparameters: " + ", ".join(f"{k}={v}" for k, v in defaults.items()),
            blank("figure of the architecture"),
            blank("what is new, and whether it has been published"),
            blank("methods and models that it builds on"),
            "Weights of other models: "
            + (blank("which") if external is None else external or trained_alone),
        ],
    )


def _training_section(data: FactsheetData) -> Section:
    recipe = json.loads(data.recipe) if data.recipe else None
    unknown = [blank("training description: stages, loss, optimizer, schedule, patches, batches")]
    return Section(
        title="Training",
        items=[
            *data.training,
            *(unknown if recipe is None else _recipe_items(recipe)),
            blank("device and duration of the training"),
        ],
        tables=None if recipe is None else recipe_tables(recipe),
    )


def _recipe_items(recipe: Mapping[str, Any]) -> Iterator[str]:
    names = [stage["name"] for stage in recipe["stage"]]
    yield f"{len(names)} stage{'s' * (len(names) != 1)}: {', '.join(names)}"
    for group in recipe["repeat"]:
        yield f"the stages {', '.join(group['stages'])} run {group['times']} times in turn"
    yield f"seed {recipe['seed']}, data parallelism by {recipe['parallel']}"


def recipe_tables(recipe: Mapping[str, Any]) -> dict[str, Table]:
    """Return tables of every setting of every stage; settings that no stage uses are left out.

    Args:
        recipe: The recipe as JSON, every default included.
    """
    stages = {stage["name"]: dict(_flatten(stage)) for stage in recipe["stage"]}
    stages = {
        name: {key: text for key, text in settings.items() if key not in _REMARKS}
        for name, settings in stages.items()
    }
    keys = list(dict.fromkeys(key for settings in stages.values() for key in settings))
    names = list(stages)
    groups = [names] if len(names) <= _MAX_COLUMNS else [[name] for name in names]
    tables: dict[str, Table] = {}
    for group in groups:
        used = [key for key in keys if any(key in stages[name] for name in group)]
        rows = [[key, *(stages[name].get(key, "-") for name in group)] for key in used]
        caption = (
            "Settings of every stage, defaults included"
            if group == names
            else f"Settings of {group[0]}, defaults included"
        )
        tables[caption] = [["setting", *group], *rows]
    return tables


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield `data.batch_size` and its value as text, for every setting that is set."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flatten(item, f"{prefix}{key}.")
        elif item not in (None, [], {}, ""):
            yield f"{prefix}{key}", item if isinstance(item, str) else _compact(item)


def _compact(item: Any) -> str:
    is_flat = isinstance(item, list) and not any(isinstance(part, list | dict) for part in item)
    if is_flat:
        return ", ".join(part if isinstance(part, str) else _compact(part) for part in item)
    return f"{item:g}" if isinstance(item, float) else json.dumps(item)


def _complexity(data: FactsheetData) -> Iterator[tuple[str, str, str]]:
    """Figures of the network: name, value with unit, how it was counted or measured."""
    entry, result = data.entry, data.result
    counted = "as the organisers count, at 256x256"
    yield "parameters", f"{entry.num_parameters:.6f} M", counted
    yield "FLOPs", f"{entry.flops:.4f} G", f"multiply-adds, {counted}"
    yield "activations", f"{entry.activations:.4f} M", f"outputs of convolutions, {counted}"
    yield "convolutions", str(entry.num_conv), counted
    timings = {split: result.protocol_timing[split] for split in SPLITS}
    for split, timing in timings.items():
        yield f"memory, {split}", f"{memory_mib(timing):.2f} MiB", _memory_source(timing)
    for split, timing in timings.items():
        yield f"runtime, {split}", f"{timing.mean_ms:.3f} ms", _protocol_text(timing)
    average = fmean(timing.mean_ms for timing in timings.values())
    yield "runtime, average", f"{average:.3f} ms", "mean of the two"
    yield _median_row("runtime, one size", result.runtime)
    if baseline := result.baseline:
        yield _median_row(f"runtime of {baseline.method}, one size", baseline.runtime)


def _memory_source(timing: ProtocolTiming) -> str:
    is_planned = timing.peak_mib is None
    return "the compiler's plan for the largest image" if is_planned else "the allocator's peak"


def _protocol_text(timing: ProtocolTiming) -> str:
    once = f"each of {len(timing.ms_per_image)} images once, mean including the first"
    runs = f"; mean of {timing.num_runs} runs of one process" if timing.num_runs > 1 else ""
    return once + runs


def _median_row(name: str, timing: Timing) -> tuple[str, str, str]:
    size = "x".join(map(str, timing.shape[1:3]))
    method = f"median of {timing.num_runs} runs at {size}, 95 % interval {timing.low_ms:.3f} to"
    return name, f"{timing.median_ms:.3f} ms", f"{method} {timing.high_ms:.3f} ms, interleaved"


def _figures_table(rows: Iterator[tuple[str, str, str]]) -> Table:
    return [("figure", "value", "how"), *rows]


def _testing(data: FactsheetData) -> list[str]:
    size = f"data range [0, {data.method.data_range:g}]"
    return [
        f"each LR image in one pass at its own size, RGB, {size}, output rounded",
        *data.weights,
    ]


def _results_section(data: FactsheetData) -> Section:
    known = {check.split: check for check in data.checks}
    rows = [
        (
            f"PSNR, {split}",
            f"{known[split].psnr:.4f} dB" if split in known else "unknown",
            threshold_text(known[split]) if split in known else UNKNOWN_PSNR,
        )
        for split in SPLITS
    ]
    return Section(
        title="Results",
        items=[
            f"metric: {data.result.spec}",
            blank("results on other benchmarks"),
            blank("comparison to other methods, advantages of the solution"),
        ],
        tables={"": _figures_table(iter(rows))},
    )


def _implementation(data: FactsheetData) -> list[str]:
    timing = data.result.runtime
    return [
        "Python, JAX and Flax: "
        + ", ".join(f"{name} {version}" for name, version in data.result.versions.items()),
        f"device: {timing.device}" + (f", driver {timing.driver}" if timing.driver else ""),
        f"one size: {timing.conditions}, implementation of ops: {timing.implementation}",
        f"measured {data.result.created}",
        blank("human effort for implementation, training and validation"),
    ]


# --- formats ---


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the factsheet in Markdown."""
    parts = [f"# {title}"]
    for number, section in enumerate(sections, 1):
        parts += [f"## {number}. {section.title}", *section.paragraphs]
        items = "\n".join(f"- {escape_markdown(item)}" for item in section.items)
        parts += [items] * bool(items)
        for caption, table in (section.tables or {}).items():
            head, *rows = [" | ".join(map(escape_markdown, row)) for row in table]
            lines = [f"| {head} |", "|---" * len(table[0]) + "|", *(f"| {row} |" for row in rows)]
            parts += [f"{caption}:"] * bool(caption) + ["\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def latex(title: str, sections: Sequence[Section]) -> str:
    """Return the factsheet as a LaTeX document."""
    lines = [r"\documentclass{article}", r"\usepackage[utf8]{inputenc}"]
    lines += [r"\usepackage{booktabs,longtable}", r"\usepackage[margin=2cm]{geometry}"]
    lines += [r"\begin{document}", rf"\title{{{_tex(title)}}}", r"\date{}\maketitle"]
    for section in sections:
        lines += ["", rf"\section{{{_tex(section.title)}}}"]
        for paragraph in section.paragraphs:
            lines += [_tex(paragraph), ""]
        if section.items:
            items = [rf"  \item {_tex(item)}" for item in section.items]
            lines += [r"\begin{itemize}", *items, r"\end{itemize}"]
        for caption, table in (section.tables or {}).items():
            lines += [rf"\paragraph{{{_tex(caption)}}}"] * bool(caption) + _latex_table(table)
    return "\n".join([*lines, "", r"\end{document}"]) + "\n"


def _latex_table(table: Table) -> list[str]:
    head, *rows = [" & ".join(map(_tex, row)) + r" \\" for row in table]
    width = f"p{{{0.78 / (len(table[0]) - 1):.2f}\\linewidth}}"
    columns = "l" + width * (len(table[0]) - 1)
    body = [r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
    return [rf"\begin{{longtable}}{{{columns}}}", *body, r"\end{longtable}"]


def _tex(text: str) -> str:
    escaped = escape_latex(text)
    for symbol, code in _LATEX_SYMBOLS.items():
        escaped = escaped.replace(symbol, code)
    return escaped.replace(BLANK.strip(), rf"\textbf{{{BLANK.strip()}}}")
