"""How a training tells where it stands."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def download_bar() -> Generator[Callable[[int, int | None], None]]:
    """A bar of bytes, gone when done; what it gives is told bytes so far, and of how many."""
    columns = (BarColumn(20), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("download", total=None)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)


class TrainingBar:
    """A bar with loss, PSNR, speed and waiting; plain lines where there is no terminal."""

    def __init__(self, steps: int):
        self._console = Console(stderr=True)
        columns = (BarColumn(20), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.description}"), console=self._console)
        self._task = self._bar.add_task("compiling", total=steps)
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

    def tell(self, report: Any) -> None:
        """Show one report of `esrjax.training.loop`."""
        self._psnr = report.psnr if report.psnr is not None else self._psnr
        line = text(report, self._psnr)
        self._bar.update(self._task, completed=report.step, description=line)
        if not self._console.is_terminal:
            print(f"{report.step:>8}/{report.steps}  {line}", flush=True)


def text(report: Any, psnr: float | None) -> str:
    """`quick  loss 0.0312  26.91 dB  7.9 steps/s  126 images/s  2 % data wait, compute-bound`."""
    quality = "" if psnr is None else f"{psnr:.2f} dB  "
    return (
        f"{report.stage}  loss {report.loss:.4f}  {quality}{report.steps_per_s:.1f} steps/s  "
        f"{report.images_per_s:.0f} images/s  "
        f"{100 * report.waiting:.0f} % data wait, {report.limit}-bound"
    )
