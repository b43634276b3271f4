"""Output of commands: JSON, tables, groups of named facts, progress bars."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Container, Generator, Iterable, Mapping, Sequence, Set
from contextlib import contextmanager, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from esrjax.errors import UserError, is_quiet, list_some, printable

if TYPE_CHECKING:
    from esrjax.challenge.record import Result
    from esrjax.data.datasets import LrImage, Pair
    from esrjax.evaluation.score import ImageMetrics, Scores
    from esrjax.training.logging import TrainReport

Item = TypeVar("Item")
_json_stream: ContextVar[Any] = ContextVar("json_stream", default=None)  # None: standard output
_PIPE_WIDTH = 1000  # characters of a line where there is no terminal


def print_unwrapped(*texts: Any, markup: bool = False) -> None:
    """Print lines or tables to standard output; long lines are not wrapped.

    Control characters of lines, as in names of files, are escaped.
    """
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    for text in texts:
        text = printable(text, " \n") if isinstance(text, str) else text
        console.print(text, markup=markup, highlight=False, soft_wrap=isinstance(text, str))


def print_stderr(lines: Iterable[object]) -> None:
    """Print notes to standard error, unless `--quiet`; control characters are escaped."""
    for line in () if is_quiet() else lines:
        typer.echo(printable(str(line)), err=True)


def print_note(note: str) -> None:
    """Print a line to standard error."""
    print_stderr([note])


def print_error(error: UserError | str) -> None:
    """Print an error after which the command goes on, to standard error."""
    typer.echo(printable(f"esrjax: {error}", "\n"), err=True)


def print_notes(notes: Mapping[str, Sequence[str]], prefix: str = "", max_lines: int = 5) -> None:
    """Print notes on images to standard error, a line for each with the images that have it.

    Args:
        notes: Name of an image -> its notes.
        prefix: What precedes the name, such as that of the dataset.
        max_lines: How many notes are printed.
    """
    names_of: dict[str, list[str]] = {}
    for name, texts in notes.items():
        for note in texts:
            names_of.setdefault(note, []).append(name)
    lines = [f"{prefix}{list_some(names, 3)}: {note}" for note, names in names_of.items()]
    more = len(lines) - max_lines
    print_stderr(lines[:max_lines] + [f"and {more:,} more notes on images"] * (more > 0))


def print_lr_source(name: str, images: Sequence[Pair] | Sequence[LrImage]) -> None:
    """Print to standard error how many images a dataset has, and where its LR images come from."""
    from esrjax.data.datasets import has_hr, lr_source

    count = f"{len(images):,} image{'s' * (len(images) != 1)}"
    kind = "LR" if has_hr(images) else "LR only, no PSNR"
    print_note(f"{name}: {count}, {kind}: {lr_source(images)}")


def show_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Iterable[str] | None = None,
    left: Container[str] | None = None,
) -> None:
    """Print one line for each row; numbers are right-aligned, with thousands separators.

    Args:
        rows: The rows; their keys are the titles of the columns.
        columns: The columns to print, in order; by default all of the first row.
        left: The columns that are left-aligned; by default those without numbers.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = list(columns or (rows[0] if rows else ()))
    for column in columns:
        has_numbers = any(isinstance(row[column], int | float) for row in rows)
        is_right = has_numbers if left is None else column not in left
        table.add_column(column, justify="right" if is_right else "left")
    for row in rows:
        table.add_row(*(escape(_text(row[column])) for column in columns))
    print_unwrapped(table)


def _text(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.3f}"
        case list():
            return printable(", ".join(map(str, value))) or "-"  # pyright: ignore[reportUnknownArgumentType]
        case None:
            return "-"
        case _:
            return printable(str(value))


def number_text(value: float | None, format: str, unit: str = "") -> str:
    """Return a number as text with its unit, or "-" where it is None.

    Args:
        value: The number.
        format: A format specification, such as ".2f".
        unit: The unit, with a space before it.
    """
    return "-" if value is None else f"{value:{format}}{unit}"


def show_facts(groups: Mapping[str, Mapping[str, Any]], width: int = 26) -> None:
    """Print groups of named facts; groups without facts are left out.

    Args:
        groups: Title of a group -> name of a fact -> its value.
        width: Width of the names, characters.
    """
    for title, facts in groups.items():
        if facts:
            print_unwrapped(f"[bold]{title}[/bold]", markup=True)
        for key, value in facts.items():
            print_unwrapped(f"  {key:<{width}} {_text(value)}")


# --- JSON --------------------------------------------------------------------------------------


def print_json(value: Any) -> None:
    """Print one JSON document.

    Dataclasses become objects, sets sorted arrays, and paths strings. JSON has no infinities and no
    NaN: infinities become the strings "inf" and "-inf", and NaN becomes null.
    """
    text = json.dumps(value, default=_plain)
    infinities = {"Infinity": "inf", "-Infinity": "-inf"}
    finite = json.loads(text, parse_constant=infinities.get)
    print(json.dumps(finite, indent=2), file=_json_stream.get())


@contextmanager
def only_json_on_stdout() -> Generator[None]:
    """Send what is printed within the block to standard error, but for `print_json`.

    A plugin may print whenever its network is built or called.
    """
    token = _json_stream.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json_stream.reset(token)


def _plain(value: Any) -> Any:
    match value:
        case Path():
            return str(value)
        case Set():
            return sorted(value)
        case Mapping():
            return dict(value)  # pyright: ignore[reportUnknownArgumentType]
        case _:
            return {field.name: getattr(value, field.name) for field in fields(value)}


# --- Markdown and LaTeX ------------------------------------------------------------------------


Scored = Mapping[str, Mapping[str, "Scores"]]  # label of a model -> name of a dataset -> scores


def scores_text(
    scores: Scored,
    methods: Mapping[str, str],
    weights: Mapping[str, str],
    format: str,
    strategy: str = "",
) -> str:
    """Return a table of the mean PSNR and SSIM, a row for each model, a column for each dataset.

    Args:
        scores: The scores of each model on each dataset, all under one metric spec.
        methods: Label of a model -> its method.
        weights: Label of a model -> whose weights it has.
        format: "md" or "latex".
        strategy: How images are upscaled, if not in a single pass.
    """
    first = next(iter(scores.values()))
    sizes = [f"{title} ({len(of_dataset.images)})" for title, of_dataset in first.items()]
    cells = [["method", "weights", *sizes]]
    for label, datasets in scores.items():
        means = [_psnr_and_ssim(of_dataset.mean) for of_dataset in datasets.values()]
        method = methods[label]
        name = label if label == method else f"{label} ({method})"
        cells.append([name, weights[label], *means])
    title = f"{_spec_title(scores, strategy)}; means over (n) images"
    return _scores_table(cells, title, format)


def images_text(scores: Scored, format: str, strategy: str = "") -> str:
    """Return a table for each dataset: PSNR and SSIM of every image, a column for each model.

    Args:
        scores: The scores of each model on each dataset.
        format: "md" or "latex".
        strategy: How images are upscaled, if not in a single pass.
    """
    tables: list[str] = []
    for title in next(iter(scores.values())):
        of_models = [datasets[title] for datasets in scores.values()]
        cells = [["image", *scores]]
        for image in of_models[0].images:
            cells.append([image, *(_psnr_and_ssim(s.images[image]) for s in of_models)])
        cells.append(["mean", *(_psnr_and_ssim(s.mean) for s in of_models)])
        tables.append(_scores_table(cells, f"{title}: {_spec_title(scores, strategy)}", format))
    return "\n\n".join(tables)


def _spec_title(scores: Scored, strategy: str) -> str:
    spec = next(s.spec for datasets in scores.values() for s in datasets.values())
    return f"PSNR [dB] / SSIM under the metric spec {spec!r}" + f", {strategy}" * bool(strategy)


def _scores_table(cells: list[list[str]], title: str, format: str) -> str:
    return _latex_table(cells, title) if format == "latex" else markdown_table(cells, title)


def _psnr_and_ssim(metrics: ImageMetrics) -> str:
    return f"{metrics.psnr:.4f} / {metrics.ssim:.4f}"


def runtimes_text(results: Sequence[Result]) -> str:
    """Return a Markdown table of runtimes, with the protocol timing where it was measured."""
    head = ["method", "median, ms", "95 % interval", "baseline interleaved, ms"]
    head += ["compile time, s", "first call, ms"]
    if any(result.protocol_timing for result in results):
        head += ["dataset", "protocol mean, ms", "first image, ms", "image sizes"]
        head += ["compile time, s"]
    rows = [_runtime(result) + cells for result in results for cells in _protocol(result)]
    time = results[0].runtime
    title = f"Runtime on {time.device}, {time.conditions}, implementation {time.implementation}"
    return markdown_table([head, *(row[: len(head)] for row in rows)], title)


def _runtime(result: Result) -> list[str]:
    time, baseline = result.runtime, result.baseline
    return [
        result.name,
        f"{time.median_ms:.3f}",
        f"[{time.low_ms:.3f}, {time.high_ms:.3f}]",
        f"{baseline.runtime.median_ms:.3f} ({baseline.method})" if baseline else "-",
        f"{time.compile_s:.1f}",
        f"{time.first_ms:.3f}",
    ]


def _protocol(result: Result) -> list[list[str]]:
    """The protocol timing of each dataset; one line without figures where there is none."""
    return [
        [name, f"{t.mean_ms:.3f}", f"{t.first_ms:.3f}", str(t.num_shapes), f"{t.compile_s:.1f}"]
        for name, t in result.protocol_timing.items()
    ] or [["-"] * 5]


def markdown_table(cells: Sequence[Sequence[str]], title: str) -> str:
    """Return a Markdown table below its title; the first row of cells is the header."""
    from esrjax.challenge.table import escape_markdown

    cells = [[escape_markdown(cell) for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([f"{title}\n", lines[0], rule, *lines[1:]])


def _latex_table(cells: list[list[str]], title: str) -> str:
    from esrjax.challenge.table import escape_latex

    head, *body = [" & ".join(map(escape_latex, row)) + r" \\" for row in cells]
    columns = "l" + "c" * (len(cells[0]) - 1)
    is_mean_last = cells[-1][0] == "mean" and cells[0][0] == "image"
    rule = [r"\midrule"] * is_mean_last
    lines = [f"% {printable(title)}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head]
    lines += [r"\midrule", *body[:-1], *rule, body[-1], r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines)


# --- progress bars -----------------------------------------------------------------------------


def progress_bar(title: str) -> Callable[[Sequence[Item]], Iterable[Item]]:
    """Return a function that yields items and shows a progress bar on standard error.

    Args:
        title: The title of the bar, which is shown on a terminal only.
    """

    def track(items: Sequence[Item]) -> Iterable[Item]:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        hidden = is_quiet() or not console.is_terminal
        columns = (*columns, TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
            yield from bar.track(items, description=title)

    return track


@contextmanager
def download_bar() -> Generator[Callable[[int, int | None], None]]:
    """Show a progress bar; yields the callback `on_progress(bytes_done, bytes_total)`."""
    columns = (BarColumn(20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=is_quiet()) as bar:
        task = bar.add_task("download", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_line(text: str, *, err: bool = False) -> None:
    """Print a line; once the output is closed or its disk full, this and later lines are dropped.

    Args:
        text: The line.
        err: Print to standard error.
    """
    stream = sys.stderr if err else sys.stdout
    try:
        print(text, file=stream, flush=True)
    except (OSError, ValueError):  # a pipe without a reader, a terminal that is gone
        with suppress(OSError, ValueError):  # else Python fails at exit, when it flushes the rest
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class TrainingBar:
    """A progress bar with loss, PSNR and throughput; plain lines where there is no terminal.

    Args:
        total_steps: The number of steps of all stages.
    """

    def __init__(self, total_steps: int):
        self._console = Console(stderr=True)
        self._shows_bar = self._console.is_terminal and not is_quiet()
        columns = (BarColumn(20), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=self._console)
        self._task = self._bar.add_task("compiling", total=total_steps)
        self._psnr: float | None = None

    def __enter__(self) -> TrainingBar:
        if self._shows_bar:
            self._bar.start()
        elif not is_quiet():
            print_line("training: compiling")
        return self

    def __exit__(self, *error: object) -> None:
        if self._shows_bar:
            self._bar.stop()

    def log(self, report: TrainReport) -> None:
        """Show a report of the training loop, with the PSNR of the last validation."""
        self._psnr = report.psnr if report.psnr is not None else self._psnr
        text = (
            f"{report.stage}  loss {report.loss:.4f}  "
            + ("" if self._psnr is None else f"{self._psnr:.2f} dB  ")
            + f"{report.steps_per_s:.1f} steps/s  {report.images_per_s:.0f} images/s  "
            f"{100 * report.data_wait:.0f} % data wait, {report.limit}-bound"
        )
        self._bar.update(self._task, completed=report.step, description=text)
        if not self._shows_bar and not is_quiet():
            print_line(f"{report.step:>8}/{report.total_steps}  {text}")
