"""`ArrayDiff`, the comparison of one JAX array with PyTorch's, and its tolerances.

Tolerances are relative to the value range of the data, not elementwise: a network's output crosses
zero, where a relative error per element says nothing.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from esrjax.evaluation.metrics import to_uint8

Array = NDArray[Any]
Precision = Literal["float32", "float64"]
Implementation = Literal["auto", "reference", "kernel"]  # of operations, see `network.ops`

# Both frameworks compute in full float32 (no TF32: JAX runs at matmul precision "highest", PyTorch
# on a CPU), but sum in different orders. In float64 almost no rounding is left, so that a wrong
# constant in the seventh digit shows.
FLOAT32_RTOL = 1e-4  # times the larger of `data_range` and PyTorch's peak-to-peak range
FLOAT64_RTOL = 1e-9  # times PyTorch's peak-to-peak range


@dataclass(frozen=True, kw_only=True)
class ArrayDiff:
    """The difference of one array of JAX's and PyTorch's, in PyTorch's layout.

    Attributes:
        name: What the array is: an output, an activation, a gradient or a weight.
        shape: Shape in PyTorch's layout.
        max_abs_diff: Largest absolute difference.
        tolerance: Largest `max_abs_diff` that passes.
        num_changed_u8: How many values differ after rounding to uint8; None where the array is no
            image in float32.
        precision: Precision that both sides were computed in.
        float32_max_abs_diff: `max_abs_diff` in float32, where that failed and the comparison was
            repeated in float64.
        worst_key: State-dict key of the array with the largest ratio of difference to tolerance,
            where several arrays are summarized in one.
        max_changed_u8: Largest `num_changed_u8` that passes; None where it is not limited.
        num_changed_u8_unperturbed: `num_changed_u8` for the input as it is, where the comparison
            passes only for an input perturbed by one float32 rounding.
    """

    name: str
    shape: tuple[int, ...]
    max_abs_diff: float
    tolerance: float
    num_changed_u8: int | None = None
    precision: Precision = "float32"
    float32_max_abs_diff: float | None = None
    worst_key: str | None = None
    max_changed_u8: int | None = None
    num_changed_u8_unperturbed: int | None = None

    @property
    def passed(self) -> bool:
        """Whether difference and changed values are within their limits; NaN does not pass."""
        within_count = (
            self.max_changed_u8 is None or (self.num_changed_u8 or 0) <= self.max_changed_u8
        )
        return self.max_abs_diff <= self.tolerance and within_count

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `passed` in plain types, for JSON."""
        return {**vars(self), "shape": list(self.shape), "passed": self.passed}


def count_changed_u8(jax_array: Array, torch_array: Array, data_range: float) -> int:
    """Count the values that differ after rounding to uint8; all, if a side is not finite.

    Args:
        jax_array: JAX's image, of any shape.
        torch_array: PyTorch's image, of the same shape.
        data_range: Value that becomes 255.

    Returns:
        The number of values (channels count separately) that differ by at least one level.
    """
    if not (np.isfinite(jax_array).all() and np.isfinite(torch_array).all()):
        return jax_array.size
    return int(np.sum(to_uint8(jax_array, data_range) != to_uint8(torch_array, data_range)))
