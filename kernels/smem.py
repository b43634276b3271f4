"""Shared-memory layout of the fused convolution kernels, and whether it fits."""

import math
from typing import Any

import jax
from jax import Array

from . import tuning
from .tensor_cores import MAX_SMEM_BYTES, padded_channels, precision_reason
from .tuning import Config

TILE_COLUMNS = (64, 128)  # pixels of a tile's row; wgmma takes multiples of 64
BANK_PAD = 8  # float32 of padding per row of shift_smem, so that rows start in different banks


def smem_shapes(columns: int, channels: int, is_gated: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the buffers in shared memory, by their names in `Refs`.

    `shift_smem` is float32, all others have the dtype of the input.
    """
    row = (columns, channels)
    shapes = {
        "w_smem": (9, 3 * channels, channels),
        "line_buffer": (3, 3, *row),
        "shift_smem": (columns + 2, channels + BANK_PAD),
        "out_smem": row,
    }
    return {**shapes, "gate_w_smem": (channels, channels), "f_smem": row} if is_gated else shapes


def clip_to_smem(config: Config, u: Array, is_gated: bool) -> Config:
    """Return `config` with as many columns as fit into shared memory, or with the fewest."""
    fitting = [
        columns for columns in TILE_COLUMNS if _smem_bytes(u, columns, is_gated) <= MAX_SMEM_BYTES
    ]
    return {**config, "columns": min(config["columns"], max(fitting, default=min(TILE_COLUMNS)))}


def unsupported_reason(u: Array, *weights: Array, is_gated: bool) -> str | None:
    """Return None if device, dtypes, sizes and matmul precision are supported, else the reason."""
    n, h, w, channels = u.shape
    padded: Any = jax.ShapeDtypeStruct(
        (n, h, max(w, min(TILE_COLUMNS)), padded_channels(channels)), u.dtype
    )
    return (
        precision_reason(u.dtype)
        or tuning.unsupported_reason(u, *weights, padded)
        or tuning.not_hopper_reason()
        or _smem_reason(u, is_gated)
    )


def _smem_reason(u: Array, is_gated: bool) -> str | None:
    num_bytes = _smem_bytes(u, min(TILE_COLUMNS), is_gated)
    if num_bytes <= MAX_SMEM_BYTES:
        return None
    usage = f"{u.shape[-1]} channels in {u.dtype} need {num_bytes} bytes of shared memory"
    return f"{usage}, the limit is {MAX_SMEM_BYTES}"


def _smem_bytes(u: Array, columns: int, is_gated: bool) -> int:
    shapes = smem_shapes(columns, padded_channels(u.shape[-1]), is_gated)
    itemsizes = {name: 4 if name == "shift_smem" else u.dtype.itemsize for name in shapes}
    return sum(math.prod(shape) * itemsizes[name] for name, shape in shapes.items())
