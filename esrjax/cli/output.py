"""Tables, progress bars and other printed output that commands share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

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

if TYPE_CHECKING:
    from pathlib import Path

    from esrjax.challenge.record import Result
    from esrjax.evaluation.score import ImageMetrics, Scores
    from esrjax.evaluation.upscale import ImageSize
    from esrjax.interop.export import ExportCheck, ExportMetadata
    from esrjax.interop.parity import GoldenComparison
    from esrjax.method import Ensemble, Member, Method
    from esrjax.nn.cost import Cost
    from esrjax.testing.methods import CheckResult
    from esrjax.training.logging import TrainReport


Item = TypeVar("Item")
_PIPE_WIDTH = 1000  # characters of a line where there is no terminal


def progress(items: Sequence[Item], title: str) -> Iterable[Item]:
    """Yield the items and show a progress bar on standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    hidden = not console.is_terminal
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
    ) as bar:
        yield from bar.track(items, description=title)


def progress_bar(title: str) -> Callable[[Sequence[Item]], Iterable[Item]]:
    """Return a function that passes items on and shows a progress bar, if on a terminal."""
    return lambda items: progress(items, title)


def print_unwrapped(text: Any = "", *, markup: bool = False) -> None:
    """Print a line or a table to standard output; long lines are not wrapped."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    console.print(text, markup=markup, highlight=False, soft_wrap=isinstance(text, str))


def show_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print one line for each row; numbers are right-aligned, with thousands separators."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        is_numeric = any(isinstance(row[column], int | float) for row in rows)
        table.add_column(column, justify="right" if is_numeric else "left")
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
            return ", ".join(map(str, value)) or "-"  # pyright: ignore[reportUnknownArgumentType]
        case None:
            return "-"
        case _:
            return str(value)


def show_method(name: str, entry: Method | Ensemble, package: str) -> None:
    """Print the description of a method or an ensemble, then its facts."""
    print_unwrapped(
        f"[bold]{name}[/bold]  (x{entry.scale}, {escape(entry.team)}; from {package})\n",
        markup=True,
    )
    if entry.description:
        print_unwrapped(f"{entry.description.strip()}\n")
    for title, facts in _facts(entry).items():
        if facts:
            print_unwrapped(f"[bold]{title}[/bold]", markup=True)
            for key, value in facts.items():
                print_unwrapped(f"  {key:<18} {_text(value)}")


def _facts(entry: Method | Ensemble) -> dict[str, dict[str, Any]]:
    from esrjax.method import Ensemble

    facts: dict[str, dict[str, Any]] = {"paper": {"source": entry.paper, "license": entry.license}}
    if isinstance(entry, Ensemble):
        return {**facts, **describe_ensemble(entry)}
    weights = {
        key: ("" if w.url else "no download URL, ") + f"{w.form} form, sha256 {w.sha256}"
        for key, w in entry.weights.items()
    }
    return {
        **facts,
        "hyperparameters": entry.default_hparams(),
        "reported": dict(entry.reported),
        "published weights (`esrjax weights get`)": weights,
        "excluded from the official cost": dict(entry.cost_excluded),
        "included in the official cost though unused": dict(entry.cost_included),
    }


def show_checks(name: str, results: Sequence[CheckResult], hparams: Mapping[str, Any]) -> None:
    """Print one line for each check, how many passed, and with which hyperparameters."""
    for result in results:
        mark = "[red]failed[/red]" if result.error else "[green]passed[/green]"
        print_unwrapped(f"{mark}  {escape(result.check)}", markup=True)
        if result.error:
            print_unwrapped(f"        {result.error}")
    passed = sum(not result.error for result in results)
    values = ", ".join(f"{key}={value}" for key, value in hparams.items())
    note = f" (with {values}; reported figures with the defaults)" if hparams else ""
    print_unwrapped(f"{name}: {passed} of {len(results)} checks passed{note}")


def show_facts(groups: Mapping[str, Mapping[str, str]]) -> None:
    """Print groups of named facts."""
    for title, facts in groups.items():
        print_unwrapped(f"[bold]{title}[/bold]", markup=True)
        for key, value in facts.items():
            print_unwrapped(f"  {key:<26} {value}")


def show_parity(comparison: GoldenComparison) -> None:
    """Print one line for each compared array, and whether all are equal."""
    rows = [
        {
            "case": diff.name,
            "shape": "x".join(map(str, diff.shape)),
            "max |difference|": f"{diff.max_abs_diff:.2e}",
            "tolerance": f"{diff.tolerance:.2e}",
            "changed uint8": diff.num_changed_u8,
            "precision": diff.precision,
            "passed": diff.passed,
        }
        for diff in comparison.diffs
    ]
    show_table(rows, list(rows[0]))
    for diff in comparison.diffs:
        if diff.num_changed_u8_unperturbed is not None:
            changed = f"{diff.num_changed_u8_unperturbed:,} changed uint8 values"
            print_unwrapped(
                f"{diff.name}: rounding tie; compared with LR moved by one rounding error "
                f"({changed} without)"
            )
    if comparison.unchecked_keys:
        print_unwrapped(f"not compared: {', '.join(comparison.unchecked_keys)}")
    result = "[green]equal[/green]" if comparison.passed else "[red]not equal[/red]"
    print_unwrapped(f"{comparison.method}: {result} to PyTorch", markup=True)


def show_cost(name: str, cost: Cost, image_size: ImageSize, *, per_module: bool) -> None:
    """Print the official cost and the full cost; with `per_module`, those of every operation."""
    if per_module:
        columns = ("path", "op", "macs", "macs_full", "activations", "convs")
        show_table([vars(op) for op in cost.ops], columns)
        print_unwrapped()
    macs = f"MACs at {image_size[0]}x{image_size[1]}"
    rows = [
        {"": "parameters", "official": cost.params, "full": cost.params_full},
        {"": macs, "official": cost.macs, "full": cost.macs_full},
        {"": "activations", "official": cost.activations, "full": None},
        {"": "convolutions", "official": cost.convs, "full": None},
    ]
    print_unwrapped(f"[bold]{name}[/bold]", markup=True)
    show_table(rows, ("", "official", "full"))


def show_export(path: Path, metadata: ExportMetadata) -> None:
    """Print what was written, and its difference from JAX in every dtype that was tried."""
    sizes = ", ".join(f"{h}x{w}" for h, w in metadata.checks[metadata.dtype].image_sizes)
    print_unwrapped(
        f"{path}: {metadata.method}, {metadata.dtype}, {metadata.layout}, "
        f"values in [0, {metadata.data_range:g}]"
    )
    rows = [
        {
            "dtype": dtype,
            "max |difference|": f"{check.max_abs_diff:.1e} of the data range",
            "PSNR": "equal" if check.psnr is None else f"{check.psnr:.1f} dB",
            "accurate": "yes (written)" if dtype == metadata.dtype else _is_accurate(check, dtype),
        }
        for dtype, check in metadata.checks.items()
    ]
    show_table(rows, list(rows[0]))
    print_unwrapped(f"compared with JAX in float32, at {sizes}")


def _is_accurate(check: ExportCheck, dtype: Any) -> bool:
    return check.within_tolerance(dtype)


def scores_text(names: Sequence[str], scores: Sequence[Scores], format: str) -> str:
    """Return a table of PSNR and SSIM of every image and their mean, a column for each method.

    Args:
        names: The methods.
        scores: The scores of each method.
        format: "md" or "latex".
    """
    cells = [["image", *names]]
    for image in scores[0].images:
        cells.append([image, *(_psnr_and_ssim(score.images[image]) for score in scores)])
    cells.append(["mean", *(_psnr_and_ssim(score.mean) for score in scores)])
    title = f"PSNR [dB] / SSIM under the metric spec {scores[0].spec!r}"
    return _latex_table(cells, title) if format == "latex" else markdown_table(cells, title)


def _psnr_and_ssim(metrics: ImageMetrics) -> str:
    return f"{metrics.psnr:.4f} / {metrics.ssim:.4f}"


def runtimes_text(results: Sequence[Result]) -> str:
    """Return a Markdown table of runtimes, with the protocol timing where it was measured."""
    head = ["method", "median, ms", "95 % interval", "baseline interleaved, ms"]
    head += ["compile time, s", "first call, ms"]
    protocol = ["dataset", "protocol mean, ms", "first image, ms", "image sizes", "compile time, s"]
    rows = [[*_runtime(result), *cells] for result in results for cells in _protocol(result)]
    has_protocol = any(result.protocol_timing for result in results)
    width = len(head + protocol) if has_protocol else len(head)
    cells = [row[:width] for row in [head + protocol, *rows]]
    time = results[0].runtime
    title = f"Runtime on {time.device}, {time.conditions}, implementation {time.implementation}"
    return markdown_table(cells, title)


def _runtime(result: Result) -> list[str]:
    time, baseline = result.runtime, result.baseline
    return [
        result.method,
        f"{time.median_ms:.3f}",
        f"[{time.low_ms:.3f}, {time.high_ms:.3f}]",
        f"{baseline.runtime.median_ms:.3f} ({baseline.method})" if baseline else "-",
        f"{time.compile_s:.1f}",
        f"{time.first_ms:.3f}",
    ]


def _protocol(result: Result) -> list[list[str]]:
    """The protocol timing of each dataset; one empty line where there is none."""
    return [
        [
            dataset,
            f"{timing.mean_ms:.3f}",
            f"{timing.first_ms:.3f}",
            str(timing.num_shapes),
            f"{timing.compile_s:.1f}",
        ]
        for dataset, timing in result.protocol_timing.items()
    ] or [["-"] * 5]


def markdown_table(cells: Sequence[Sequence[str]], title: str) -> str:
    """Return a Markdown table below its title; the first row of cells is the header."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([f"{title}\n", lines[0], rule, *lines[1:]])


def _latex_table(cells: list[list[str]], title: str) -> str:
    head, *body = [" & ".join(cell.replace("_", r"\_") for cell in row) + r" \\" for row in cells]
    columns = "l" + "c" * (len(cells[0]) - 1)
    return "\n".join(
        [
            f"% {title}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body[:-1],
            r"\midrule",
            body[-1],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


# --------------------------------------------------------------------------------------------------
# Progress bars of downloads and of training.
# --------------------------------------------------------------------------------------------------


@contextmanager
def download_bar() -> Generator[Callable[[int, int | None], None]]:
    """Show a progress bar; yields the callback `on_progress(bytes_done, bytes_total)`."""
    columns = (BarColumn(20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("download", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class TrainingBar:
    """A progress bar with loss, PSNR and throughput; plain lines where there is no terminal.

    Args:
        total_steps: The number of steps of all stages.
    """

    def __init__(self, total_steps: int):
        self._console = Console(stderr=True)
        columns = (BarColumn(20), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=self._console)
        self._task = self._bar.add_task("compiling", total=total_steps)
        self._psnr: float | None = None

    def __enter__(self) -> TrainingBar:
        if self._console.is_terminal:
            self._bar.start()
        else:
            print("training: compiling", flush=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def log(self, report: TrainReport) -> None:
        """Show a report of the training loop, with the PSNR of the last validation."""
        self._psnr = report.psnr if report.psnr is not None else self._psnr
        text = report_text(report, self._psnr)
        self._bar.update(self._task, completed=report.step, description=text)
        if not self._console.is_terminal:
            print(f"{report.step:>8}/{report.total_steps}  {text}", flush=True)


def report_text(report: TrainReport, psnr: float | None) -> str:
    """`quick  loss 0.0312  26.91 dB  7.9 steps/s  126 images/s  2 % data wait, compute-bound`."""
    quality = "" if psnr is None else f"{psnr:.2f} dB  "
    return (
        f"{report.stage}  loss {report.loss:.4f}  {quality}{report.steps_per_s:.1f} steps/s  "
        f"{report.images_per_s:.0f} images/s  "
        f"{100 * report.data_wait:.0f} % data wait, {report.limit}-bound"
    )


# --------------------------------------------------------------------------------------------------
# Ensembles on the command line: their description, and their comparison with goldens.
# --------------------------------------------------------------------------------------------------


FUSIONS = {
    "mean": "weighted mean in float32",
    "adaptive": "uint8 images weighted by closeness to their mean, rounded down; two images: "
    "half each",
}


def describe_ensemble(ensemble: Ensemble) -> dict[str, dict[str, str]]:
    """Return how members are run and fused, in groups of named facts."""
    is_weighted = ensemble.fusion == "mean"
    members = {
        name: _describe_member(member) + f", weight {member.weight:g}" * is_weighted
        for name, member in ensemble.members.items()
    }
    return {"members": members, "fusion": {ensemble.fusion: FUSIONS[ensemble.fusion]}}


def _describe_member(member: Member) -> str:
    parts = ["x8 self-ensemble" if member.self_ensemble else "single pass"]
    if member.windows:
        sides = ", ".join(f"{side} ({weight:g})" for side, weight in member.windows.items())
        parts.append(f"windows of {sides} pixels")
    if member.pad_multiple:
        parts.append(f"reflect-padded to a multiple of {member.pad_multiple}")
    return ", ".join(parts)
