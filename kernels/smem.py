"""Shared memory of the fused convolution kernels, and whether it suffices."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from . import tuning
from .tensor_cores import BARRIER_BYTES, padded_channels, precision_reason, smem_reason

COLUMNS = 64  # of a strip, halo included; wgmma's least number of rows
# Values of padding per row of `row_smem`: rows that threads access together start in other banks.
BANK_PAD = 8


def smem_shapes(channels: int, dtype: Any, is_gated: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the buffers, by their names in `fused_conv3.Refs`."""
    row = (COLUMNS, channels)
    shapes: dict[str, tuple[int, ...]] = {
        "w_smem": (3, 3, 3 * channels, channels),
        "row_smem": (3, COLUMNS + 2, channels + BANK_PAD),
        "out_smem": row,
    }
    if is_gated:
        shapes["gate_w_smem"] = (channels, channels)
    if dtype == jnp.float32:
        shapes["lhs_smem"] = (3, 3, *row)
    return shapes


def unsupported_reason(u: Array, *weights: Array, is_gated: bool) -> str | None:
    """Return None if device, dtypes, sizes and matmul precision are supported, else the reason."""
    n, h, w, channels = u.shape
    padded: Any = jax.ShapeDtypeStruct((n, h, max(w, COLUMNS), padded_channels(channels)), u.dtype)
    return (
        precision_reason(u.dtype)
        or tuning.unsupported_reason(u, *weights, padded)
        or tuning.not_hopper_reason()
        or smem_reason(f"{channels} channels in {u.dtype}", _smem_bytes(u, is_gated))
    )


def _smem_bytes(u: Array, is_gated: bool) -> int:
    shapes = smem_shapes(padded_channels(u.shape[-1]), u.dtype, is_gated)
    return BARRIER_BYTES + u.dtype.itemsize * sum(map(math.prod, shapes.values()))
