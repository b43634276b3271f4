"""Training reports, the measurement of loss and throughput, and TensorBoard logging."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from esrjax.errors import import_extra

SCALARS = ("loss", "learning_rate", "psnr", "ssim", "steps_per_s", "images_per_s", "data_wait")
Batch = TypeVar("Batch")
_DATA_BOUND_WAIT = 0.1  # fraction of time; less is the first batch and hand-over


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """Progress of a training since the last report; its fields are the keys of `metrics.jsonl`.

    Attributes:
        stage: Name of the stage run.
        step: Steps done, over all stages.
        total_steps: Steps of the recipe.
        loss: Mean loss since the last report.
        learning_rate: Learning rate of the last step.
        steps_per_s: Steps per second.
        images_per_s: Patches per second.
        data_wait: Fraction of the time in which the devices had to wait for data.
        limit: Whether the speed is limited by reading data or by computation.
        psnr: PSNR of the validation, dB, None if there was none.
        ssim: SSIM of the validation, None if there was none or the spec has no SSIM.
    """

    stage: str
    step: int
    total_steps: int
    loss: float
    learning_rate: float
    steps_per_s: float
    images_per_s: float
    data_wait: float
    limit: Literal["data", "compute"]
    psnr: float | None = None
    ssim: float | None = None


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Averages over some steps.

    Attributes:
        loss: Mean loss.
        steps_per_s: Steps per second.
        data_wait: Fraction of the time in which the devices had to wait for data.
        limit: Whether the speed is limited by reading data or by computation.
    """

    loss: float
    steps_per_s: float
    data_wait: float
    limit: Literal["data", "compute"]


class Meter:
    """Measures throughput since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new measurement."""
        self.losses: list[jax.Array] = []
        self.wait_s, self.start_time = 0.0, time.perf_counter()

    def timed(self, source: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches of `source`, and measure how long the devices wait for them.

        Steps are dispatched asynchronously, so the devices may still compute while the host waits
        for the next batch. The wait counts only if the last step has finished when the batch
        arrives, and then in full.
        """
        while True:
            start = time.perf_counter()
            batch = next(source, None)
            is_idle = not self.losses or self.losses[-1].is_ready()  # pyright: ignore[reportAttributeAccessIssue]
            self.wait_s += (time.perf_counter() - start) * is_idle
            if batch is None:
                return
            yield batch

    def add(self, loss: jax.Array) -> None:
        """Record the loss of one step; it may not be computed yet."""
        self.losses.append(loss)

    def throughput(self) -> Throughput:
        """Return the throughput since the last reset; waits until all losses are computed."""
        losses = jax.device_get(self.losses)
        elapsed = time.perf_counter() - self.start_time
        wait = self.wait_s / elapsed
        return Throughput(
            loss=float(np.mean(losses)),
            steps_per_s=len(losses) / elapsed,
            data_wait=wait,
            limit="data" if wait > _DATA_BOUND_WAIT else "compute",
        )


class TensorBoardLogger:
    """Context manager that writes reports to `tensorboard/` in the run's folder.

    The step is counted over all stages.

    Args:
        folder: Folder of the run.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """

    def __init__(self, folder: Path):
        library = import_extra("tensorboardX", "log", "--tensorboard")
        self._new_writer = partial(library.SummaryWriter, str(folder / "tensorboard"))
        self._writer: Any = None

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def log(self, report: TrainReport) -> None:
        """Write one report.

        The first call after a resume makes TensorBoard drop the events of its step and later, which
        a killed process had logged beyond its last checkpoint.
        """
        if self._writer is None:
            suffix = f".{report.step:09d}"  # event files of the same second would overwrite
            self._writer = self._new_writer(purge_step=report.step, filename_suffix=suffix)
        for name in SCALARS:
            if (value := getattr(report, name)) is not None:
                self._writer.add_scalar(name, value, report.step)
        self._writer.flush()
