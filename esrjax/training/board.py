"""TensorBoard logging of training reports."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from esrjax.network.archive import MissingExtra
from esrjax.training.meter import TrainReport

SCALARS = ("loss", "learning_rate", "psnr", "ssim", "steps_per_s", "images_per_s", "data_wait")


class TensorBoardLogger:
    """Context manager that writes reports to `tensorboard/` in the run's folder.

    The step is counted over all stages.

    Args:
        folder: Folder of the run.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """

    def __init__(self, folder: Path):
        self._folder, self._writer_class = folder / "tensorboard", _summary_writer_class()
        self._writer: Any = None

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def log(self, report: TrainReport) -> None:
        """Write one report.

        The first call after a resume makes TensorBoard drop the events of its step and later, which
        a killed process had logged beyond its last checkpoint.
        """
        if self._writer is None:
            suffix = f".{report.step:09d}"  # event files of the same second would overwrite
            folder, purge_step = str(self._folder), report.step
            self._writer = self._writer_class(folder, purge_step=purge_step, filename_suffix=suffix)
        for name in SCALARS:
            if (value := getattr(report, name)) is not None:
                self._writer.add_scalar(name, value, report.step)
        self._writer.flush()


def _summary_writer_class() -> Any:
    try:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra(
            "--tensorboard needs tensorboardX",
            rule="tensorboardX is an optional dependency",
            remedy='pip install "esrjax[log]"',
        ) from error
    return SummaryWriter
