"""One compared array, and what it may differ by."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from esrjax.pictures.metrics import quantise

Array = NDArray[Any]
Precision = Literal["float32", "float64"]
Body = Literal["auto", "reference", "kernel"]  # which bodies operations run with

TOLERANCE = 1e-4  # in float32: of the larger of white and the reference's peak to peak
EXACT = 1e-9  # in float64: of the reference's spread


@dataclass(frozen=True, kw_only=True)
class Case:
    """One compared array, in PyTorch's layout.

    max_abs: largest difference. allowed: largest that passes. changed: 8-bit values that differ,
    for outputs in float32; else None. precision: in which it was computed; of a stored case that
    float64 had to judge, float32_max_abs is what float32 gave. worst: of several arrays, the one
    that this is about. changeable: 8-bit values that may differ, where that is limited.
    changed_as_is: of a case that passes where LR is moved by one rounding, what differed before.
    """

    case: str
    shape: tuple[int, ...]
    max_abs: float
    allowed: float
    changed: int | None = None
    precision: Precision = "float32"
    float32_max_abs: float | None = None
    worst: str | None = None
    changeable: int | None = None
    changed_as_is: int | None = None

    @property
    def passed(self) -> bool:
        """Not larger, and in no more values, than allowed; NaN does not pass."""
        few = self.changeable is None or (self.changed or 0) <= self.changeable
        return self.max_abs <= self.allowed and few

    def as_dict(self) -> dict[str, Any]:
        """In plain types, for JSON."""
        return {**vars(self), "shape": list(self.shape), "passed": self.passed}


def changed(ours: Array, theirs: Array, white: float) -> int:
    """8-bit values that differ; all of them where one side is not finite."""
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return ours.size
    return int(np.sum(quantise(ours, white) != quantise(theirs, white)))
