"""What a training tells, for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from esrjax.network.archive import MissingExtra
from esrjax.training.meter import Report

SHOWN = ("loss", "lr", "psnr", "ssim", "steps_per_s", "images_per_s", "waiting")


class Board:
    """Writes every report into `tensorboard/` of the run's folder, by step over all stages."""

    def __init__(self, folder: Path):
        self._folder, self._kind = folder / "tensorboard", _writer()
        self._open: Any = None

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open.close()

    def tell(self, report: Report) -> None:
        """Note one report; what was noted of its step and later, before a kill, is dropped."""
        if self._open is None:
            suffix = f".{report.step:09d}"  # two in one second would share a name
            folder, since = str(self._folder), report.step
            self._open = self._kind(folder, purge_step=since, filename_suffix=suffix)
        for name in SHOWN:
            if (value := getattr(report, name)) is not None:
                self._open.add_scalar(name, value, report.step)
        self._open.flush()


def _writer() -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra(
            "--tensorboard needs tensorboardX",
            rule="tensorboardX is an optional dependency",
            remedy='pip install "esrjax[log]"',
        ) from error
    return SummaryWriter
