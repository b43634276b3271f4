"""How a training goes: loss, speed, waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

Batch = tuple[jax.Array, jax.Array]
_IDLE = 0.1  # share of the time; less than that is the first batch, and hand-over


@dataclass(frozen=True, kw_only=True)
class Report:
    """Where a training stands. step: over all stages. waiting: share of the time without data.

    limit: what the speed hangs on, the reading of pictures or the arithmetic.
    """

    stage: str
    step: int
    steps: int
    loss: float
    lr: float
    steps_per_s: float
    images_per_s: float
    waiting: float
    limit: Literal["data", "compute"]
    psnr: float | None = None
    ssim: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Mean loss, steps a second and share of the time without data, over some steps."""

    loss: float
    steps_per_s: float
    waiting: float

    @property
    def limit(self) -> Literal["data", "compute"]:
        """What the speed hangs on; devices that have to do are not kept waiting."""
        return "data" if self.waiting > _IDLE else "compute"


class Meter:
    """The pace since it was last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin to measure anew."""
        self.losses: list[jax.Array] = []
        self.waited, self.since = 0.0, time.perf_counter()

    def waits(self, source: Iterator[Batch]) -> Iterator[Batch]:
        """Pass on what `source` gives, and note how long the devices had nothing else to do.

        Steps run on while the next batch is awaited; only if the last one is done by then, the
        wait counts, and counts whole.
        """
        while True:
            asked = time.perf_counter()
            batch = next(source, None)
            idle = not self.losses or self.losses[-1].is_ready()  # pyright: ignore[reportAttributeAccessIssue]
            self.waited += (time.perf_counter() - asked) * idle
            if batch is None:
                return
            yield batch

    def add(self, loss: jax.Array) -> None:
        """Note the loss of one step; it may still be being computed."""
        self.losses.append(loss)

    def pace(self) -> Pace:
        """The pace so far, once every noted loss is computed."""
        losses = jax.device_get(self.losses)
        spent = time.perf_counter() - self.since
        return Pace(
            loss=float(np.mean(losses)),
            steps_per_s=len(losses) / spent,
            waiting=self.waited / spent,
        )
