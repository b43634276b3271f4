"""`ArrayDiff`, the difference of a JAX array from PyTorch's; precision, layouts, `OptimizerPair`.

Tolerances are relative to the value range of the data, not elementwise: a network's output crosses
zero, where a relative error per element says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import optax
from numpy.typing import NDArray

from esrjax.evaluation.metrics import to_uint8
from esrjax.nn import ops

Array = NDArray[Any]
Precision = Literal["float32", "float64"]
Implementation = Literal["auto", "reference", "kernel"]  # of operations, see `nn.ops`

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
        case: Weights, image size, mode and image, where the difference is the worst of several.
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
    case: str | None = None
    worst_key: str | None = None
    max_changed_u8: int | None = None
    num_changed_u8_unperturbed: int | None = None

    @classmethod
    def of(
        cls, name: str, jax_array: Array, torch_array: Array, tolerance: float, **fields: Any
    ) -> ArrayDiff:
        """Return the difference of two arrays.

        Args:
            name: What the arrays are.
            jax_array: JAX's array, in PyTorch's layout.
            torch_array: PyTorch's array, of the same shape.
            tolerance: Largest absolute difference that passes.
            **fields: Further fields.
        """
        with np.errstate(invalid="ignore"):  # inf - inf
            diff = float(np.abs(jax_array.astype(np.float64) - torch_array).max())
        shape = torch_array.shape
        return cls(name=name, shape=shape, max_abs_diff=diff, tolerance=tolerance, **fields)

    @property
    def passed(self) -> bool:
        """Whether difference and changed values are within their limits; NaN does not pass."""
        if self.max_changed_u8 is not None and (self.num_changed_u8 or 0) > self.max_changed_u8:
            return False
        return self.max_abs_diff <= self.tolerance

    def prefer_passed(self, repeated: ArrayDiff, **fields: Any) -> ArrayDiff:
        """Return `repeated`, with `fields` replaced, where only that passes, and else this."""
        return self if self.passed or not repeated.passed else replace(repeated, **fields)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `passed` in plain types, for JSON."""
        return {**vars(self), "shape": list(self.shape), "passed": self.passed}


float64_diff = partial(ArrayDiff.of, precision="float64")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Results of comparing a JAX network with PyTorch.

    Attributes:
        method: Name of the method.
        diffs: One per compared array.
    """

    method: str
    diffs: tuple[ArrayDiff, ...]

    @property
    def checks(self) -> dict[str, bool]:
        """Name of every check, and whether it passed."""
        return {diff.name: diff.passed for diff in self.diffs}

    @property
    def passed(self) -> bool:
        """Whether there are checks and all passed."""
        return bool(self.checks) and all(self.checks.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and `passed` in plain types, for JSON."""
        diffs = [diff.as_dict() for diff in self.diffs]
        return {**vars(self), "diffs": diffs, "passed": self.passed}


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


def value_range(array: Array) -> float:
    """Return the peak-to-peak range, or the largest absolute value of a constant array."""
    return float(np.ptp(array)) or float(np.max(np.abs(array)))


def ratio(value: float, limit: float) -> float:
    """Return `value / limit` for sorting: infinity for NaN, and 1 for a positive value / 0."""
    quotient = value / limit if limit else float(value > 0)
    return np.inf if np.isnan(quotient) else quotient


def worst(diffs: Sequence[ArrayDiff]) -> ArrayDiff:
    """Return the difference with the largest ratio to its tolerance; the first of several.

    Args:
        diffs: At least one; `num_changed_u8` is summed.
    """
    largest = max(diffs, key=lambda diff: ratio(diff.max_abs_diff, diff.tolerance))
    changed = [diff.num_changed_u8 for diff in diffs if diff.num_changed_u8 is not None]
    return replace(largest, num_changed_u8=sum(changed)) if changed else largest


def worst_of_keys(
    name: str,
    jax_values: Mapping[str, Array],
    torch_values: Mapping[str, Array],
    tolerances: Mapping[str, float],
) -> list[ArrayDiff]:
    """Return the worst difference of the float64 arrays that both have, under `worst_key`.

    Args:
        name: What the arrays are.
        jax_values: JAX's arrays by key.
        torch_values: PyTorch's.
        tolerances: Largest absolute differences that pass.
    """
    diffs = [
        float64_diff(name, jax_values[key], value, tolerances[key], worst_key=key)
        for key, value in torch_values.items()
        if key in jax_values
    ]
    return [worst(diffs)] if diffs else []


def rebuild(values: Any, items: Sequence[Any]) -> Any:
    """Return a tuple, named tuple or list of the type of `values`, of other items."""
    return type(values)(*items) if hasattr(values, "_fields") else type(values)(items)


def max_abs(array: Array) -> float:
    """Return the largest absolute value; 0 of an empty array."""
    return float(np.abs(array).max(initial=0.0))


# --- precision ---


@contextmanager
def full_precision(implementation: Implementation) -> Generator[None]:
    """Context in which JAX uses one implementation of operations, and no TF32.

    Args:
        implementation: "auto", "reference" or "kernel".
    """
    with ops.implementation(implementation), jax.default_matmul_precision("highest"):
        yield


@contextmanager
def float64_reference() -> Generator[None]:
    """Context that allows float64, with reference implementations: kernels do not support it."""
    with jax.enable_x64(True), full_precision("reference"):
        yield


# --- layouts: conversion of channels-last arrays (JAX) to those that PyTorch modules use ---


def candidate_layouts(array: Array, shape: tuple[int, ...]) -> list[Array]:
    """Return `array` in every layout that gives it PyTorch's `shape`.

    Layouts are channels first or last, each as an image (H, W) or as tokens (L) in raster order.
    Several fit where, for instance, the image has as many rows as channels.

    Args:
        array: JAX's array, `(N, ..., C)`.
        shape: PyTorch's shape. If it has fewer channels than `array`, the first ones are taken,
            because a golden file may store only the first channels of an activation.

    Returns:
        Arrays of `shape`; an empty list if no layout fits.
    """
    layouts = [array] if array.shape == shape else []
    if array.ndim < 2 or len(shape) < 2 or shape[0] != len(array):
        return layouts
    tokens = array.reshape(len(array), -1, array.shape[-1])
    for shape_axis, channel_axis, tensor in ((1, 1, tokens.mT), (-1, 2, tokens)):
        channels, num_tokens = shape[shape_axis], math.prod(shape[1:]) // max(shape[shape_axis], 1)
        if channels <= array.shape[-1] and num_tokens == tokens.shape[1]:
            layouts.append(np.take(tensor, np.arange(channels), channel_axis).reshape(shape))
    return layouts


def to_channels_first(array: Array) -> Array:
    """Return `array (N, ..., C)` as `(N, C, ...)`."""
    return np.moveaxis(array, -1, 1)


# --- optimizers ---


@dataclass(frozen=True, kw_only=True)
class OptimizerPair:
    """One optimizer in both frameworks, with the same hyperparameters.

    Attributes:
        torch_name: Class name in `torch.optim`.
        torch_kwargs: Its keyword arguments, `lr` included.
        optax_tx: The same optimizer in optax.
        only_2d: Whether it updates 2-D parameters only, as Muon does.
        grad_scales: One optimizer step each, with the gradient times this factor; errors of the
            moment estimates show from the second step on.
    """

    torch_name: str
    torch_kwargs: Mapping[str, Any]
    optax_tx: optax.GradientTransformation
    only_2d: bool = False
    grad_scales: tuple[float, ...] = (1.0,)
