"""Two networks over a set of pictures: how far apart what people would see of them is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from esrjax.pictures import upscale
from esrjax.pictures.metrics import psnr
from esrjax.pictures.sets import Pair
from esrjax.pictures.specs import NTIRE

Forward = Callable[[Any], Any]  # (1, h, w, 3) -> (1, s·h, s·w, 3), white at the data range

MILLIBELS = 1.0  # mdB that the mean PSNR of a set may differ by


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A set under both networks: mean PSNR in dB, and 8-bit values that differ, of how many."""

    spec: str
    pictures: int
    ours: float
    theirs: float
    changed: int
    values: int

    @property
    def mdb(self) -> float:
        """Ours minus theirs, mdB."""
        return 1000 * (self.ours - self.theirs) if self.ours != self.theirs else 0.0

    @property
    def passed(self) -> bool:
        """Not farther apart than `MILLIBELS`."""
        return abs(self.mdb) <= MILLIBELS

    def as_dict(self) -> dict[str, Any]:
        """In plain types, for JSON."""
        return {**vars(self), "mdb": self.mdb, "passed": self.passed}


def quality(ours: Forward, theirs: Forward, white: float, pairs: Sequence[Pair]) -> Quality:
    """Both over the pairs, under the metric of the challenge, white at `white`."""
    sides = [upscale.to_8_bits(upscale.whole(run, white)) for run in (ours, theirs)]
    decibels: list[tuple[float, ...]] = []
    apart, values = 0, 0
    for pair in pairs:
        lr, hr = pair.load()
        mine, other = (side(lr) for side in sides)
        decibels.append(tuple(psnr(sr, hr, NTIRE) for sr in (mine, other)))
        apart, values = apart + int(np.sum(mine != other)), values + mine.size
    mean_ours, mean_theirs = np.mean(decibels, axis=0)
    return Quality(
        spec=NTIRE.name,
        pictures=len(pairs),
        ours=float(mean_ours),
        theirs=float(mean_theirs),
        changed=apart,
        values=values,
    )
