"""Gated residual `(x + f) · (W f + b)` per pixel, in one pass over device memory.

Unfused, the matmul, the sum and both factors go through device memory: 8 C values per pixel. Here
`x` and `f` are read and `y` is written once: 3 C (the NTIRE 2026 report's section on SPANV2 argues
the same for its own operator). Every thread holds pixels with all their channels and multiplies in
float32 without tensor cores: at these widths the kernel is memory-bound.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from esrjax.nn.ops import Kernel

from . import tuning
from .row_layout import (
    MAX_COLUMNS,
    WARPGROUP_THREADS,
    RowTile,
    make_kernel,
    pallas,
    store,
    tile_start,
)
from .tuning import Config

NAME = "gated_residual"
CONFIG_SPACE = {"rows": (WARPGROUP_THREADS, 2 * WARPGROUP_THREADS)}  # pixels per tile


def call(
    x: Array, f: Array, w: Array, b: Array, *, config: Config | None = None, interpret: Any = None
) -> Array:
    """Return the output of the op `gated_residual`, shaped as `x`.

    Args:
        x: Input of the block `(N, h, w, C)`.
        f: Output of its convolutions `(N, h, w, C)`.
        w: Kernel of the gate `(1, 1, C, C)`.
        b: Bias of the gate `(C,)`.
        config: Tile sizes; by default the tuned ones.
        interpret: Parameters of the interpreter, which runs on any platform; None for the device.
    """
    channels = x.shape[-1]
    pixels = x.size // channels
    rows = (config or tuning.get_config(NAME, CONFIG_SPACE))["rows"]
    pad_rows = max(0, rows - pixels)
    x_rows, f_rows = (jnp.pad(a.reshape(-1, channels), ((0, pad_rows), (0, 0))) for a in (x, f))
    tile = RowTile(rows=rows, columns=channels, interpret=interpret)
    operands = (x_rows, f_rows, w[0, 0], b)
    run = make_kernel(
        lambda *refs: _compute_tile(tile, pixels + pad_rows, *refs),
        operands,
        flops=2 * (pixels + pad_rows) * channels * (channels + 1),
        out_type=jax.ShapeDtypeStruct(x_rows.shape, x.dtype),
        grid=(pallas().cdiv(pixels, rows),),
        grid_names=("tile",),
        kernel_name=NAME,
        interpret=interpret,
    )
    return run(*operands)[:pixels].reshape(x.shape)


def _compute_tile(tile: RowTile, pixels: int, x: Any, f: Any, w: Any, b: Any, y: Any) -> None:
    """Compute one tile of pixels."""
    pixel_slice = pallas().ds(tile_start(lax.axis_index("tile"), tile.rows, pixels), tile.rows)
    f_tile = tile.load(f, pixel_slice, slice(None))
    f_columns = tile.to_layout(f_tile, tile.unpacked_layout)
    gate = tile.broadcast_row(tile.load_row(b, slice(None)))
    column_index = tile.to_layout(
        lax.broadcasted_iota(jnp.int32, f_tile.shape, 1), tile.unpacked_layout
    )
    # -0.0, because x + (-0.0) is x for every x, also for -0.0
    neg_zeros = tile.to_layout(jnp.full(f_tile.shape, -0.0, jnp.float32), tile.unpacked_layout)
    for k in range(tile.columns):
        # Column k of f as a masked sum. The sum of a slice of one column would do, but the layout
        # inference of JAX 0.11 and 0.12 finds no layout for it.
        column = jnp.where(column_index == k, f_columns, neg_zeros).sum(1)
        row = tile.load_row(w, k, slice(None))
        gate = gate + tile.broadcast_column(column) * tile.broadcast_row(row)
    x_tile = tile.load(x, pixel_slice, slice(None))
    store(y.at[pixel_slice, :], ((x_tile + f_tile) * gate).astype(y.dtype))


def unsupported_reason(x: Array, f: Array, w: Array, b: Array) -> str | None:
    """Return None if the kernel supports the operands on this device, else the reason."""
    channels = x.shape[-1]
    if channels > MAX_COLUMNS:
        return f"it supports up to {MAX_COLUMNS} channels, not {channels}"
    return tuning.unsupported_reason(x, f, w, b)


KERNEL = Kernel(
    call=call,
    unsupported_reason=unsupported_reason,
    disabled_reason=lambda: tuning.disabled_reason(NAME),
)
