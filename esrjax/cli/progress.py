"""Progress bars of downloads and of training."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from esrjax.training.meter import TrainReport


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
