"""Training reports, the measurement of loss and throughput, and loggers."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from esrjax.data.image_io import Pixels
from esrjax.errors import import_extra
from esrjax.io import write_bytes

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
        images: Name -> SR image of the validation, (h, w, 3) uint8, of its first images; no key of
            `metrics.jsonl`.
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
    images: Mapping[str, Pixels] = field(
        default_factory=dict[str, Pixels], repr=False, compare=False
    )

    def as_dict(self) -> dict[str, Any]:
        """Return all fields but `images`."""
        return {key: value for key, value in vars(self).items() if key != "images"}

    @property
    def scalars(self) -> dict[str, float]:
        """The numbers that are logged, by name; without those that there are none of."""
        values = {name: getattr(self, name) for name in SCALARS}
        return {name: value for name, value in values.items() if value is not None}


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
        library = import_extra("tensorboardX", "log", "--log tensorboard")
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
        for name, value in report.scalars.items():
            self._writer.add_scalar(name, value, report.step)
        for name, pixels in report.images.items():
            self._writer.add_image(f"validation/{name}", pixels, report.step, dataformats="HWC")
        self._writer.flush()


class WandbLogger:
    """Context manager that logs reports as a run of Weights & Biases, files in `wandb/`.

    The run has the name of the folder; a resumed training goes on with it, where W&B ignores the
    steps that it has. WANDB_PROJECT, WANDB_MODE and the other variables of wandb apply.

    Args:
        folder: Folder of the run.

    Raises:
        MissingExtra: wandb is not installed.
    """

    def __init__(self, folder: Path):
        self._library, self._folder = import_extra("wandb", "wandb", "--log wandb"), folder

    def __enter__(self) -> WandbLogger:
        self._run = self._library.init(
            dir=str(self._folder),
            id=_stored_id(self._folder / "wandb" / "run_id.txt"),
            name=self._folder.absolute().name,
            resume="allow",
            reinit="finish_previous",
        )
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        self._run.finish(exit_code=int(exc_type is not None))

    def log(self, report: TrainReport) -> None:
        """Log one report."""
        images = {
            f"validation/{name}": self._library.Image(pixels)
            for name, pixels in report.images.items()
        }
        self._run.log({**report.scalars, **images}, step=report.step)


def _stored_id(file: Path) -> str:
    """Return the ID in a file, a new random one if there is no such file.

    Names of folders are no IDs: the runs of two folders of one name would become one.
    """
    if not file.exists():
        write_bytes(file, secrets.token_hex(8).encode())
    return file.read_text()


class MlflowLogger:
    """Context manager that logs reports as a run of MLflow.

    MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME apply; without the first, `mlflow.db` and
    `mlruns/` in the folder are written. A resumed training is a new run of the same name.

    Args:
        folder: Folder of the run.

    Raises:
        MissingExtra: mlflow is not installed.
    """

    def __init__(self, folder: Path):
        self._library, self._folder = import_extra("mlflow", "mlflow", "--log mlflow"), folder

    def __enter__(self) -> MlflowLogger:
        folder = self._folder.absolute()
        if "MLFLOW_TRACKING_URI" not in os.environ:
            folder.mkdir(parents=True, exist_ok=True)
            self._library.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "esrjax")
            if self._library.get_experiment_by_name(name) is None:
                # Images of its default experiment would go to the current folder.
                self._library.create_experiment(name, (folder / "mlruns").as_uri())
            self._library.set_experiment(name)
        self._library.start_run(run_name=folder.name)
        return self

    def __exit__(self, exc_type: object, *_: object) -> None:
        self._library.end_run("FAILED" if exc_type is not None else "FINISHED")

    def log(self, report: TrainReport) -> None:
        """Log one report."""
        self._library.log_metrics(report.scalars, step=report.step)
        for name, pixels in report.images.items():
            self._library.log_image(pixels, key=f"validation {name}", step=report.step)
