"""`(x + f) · (W f + b)` per pixel in one pass over memory: `x` and `f` are read once, `y` written.

Unfused, the product, the sum and the two factors travel through memory: 8 C words a pixel, not
3 C (the NTIRE 2026 report's section on SPANV2 argues the same for its own operator). Every lane
holds pixels with all their channels and multiplies in float32, without tensor cores: at these
widths memory is what is waited for.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from esrjax.network.ops import Kernel

from . import devices
from .devices import Block
from .lanes import LANES, WIDEST, Lanes, first, mosaic, pallas

NAME = "gated_residual"
BLOCKS = {"rows": (LANES, 2 * LANES)}  # pixels of a tile


def call(
    x: Array, f: Array, w: Array, b: Array, *, block: Block | None = None, interpret: Any = None
) -> Array:
    """The operation's value; with parameters of the interpreter, on any platform."""
    channels = x.shape[-1]
    pixels = x.size // channels
    rows = (block or devices.block(NAME, BLOCKS))["rows"]
    short = max(0, rows - pixels)
    x_rows, f_rows = (jnp.pad(a.reshape(-1, channels), ((0, short), (0, 0))) for a in (x, f))
    lanes = Lanes(rows=rows, columns=channels, interpret=interpret)
    run = mosaic().kernel(
        lambda *refs: _tile(lanes, pixels + short, *refs),
        out_type=jax.ShapeDtypeStruct(x_rows.shape, x.dtype),
        grid=(pallas().cdiv(pixels, rows),),
        grid_names=("tile",),
        kernel_name=NAME,
        interpret=interpret,
    )
    return run(x_rows, f_rows, w[0, 0], b)[:pixels].reshape(x.shape)


def _tile(lanes: Lanes, pixels: int, x: Any, f: Any, w: Any, b: Any, y: Any) -> None:
    """One tile of pixels."""
    here = pallas().ds(first(lax.axis_index("tile"), lanes.rows, pixels), lanes.rows)
    found = lanes.load(f, here, slice(None))
    columns = lanes.cast(found, lanes.single)
    gate = lanes.spread_row(lanes.load_row(b, slice(None)))
    places = lanes.cast(lax.broadcasted_iota(jnp.int32, found.shape, 1), lanes.single)
    nothing = lanes.cast(jnp.full(found.shape, -0.0, jnp.float32), lanes.single)  # x - 0 is x
    for k in range(lanes.columns):
        # not a slice of one column: JAX 0.11 and 0.12 find no layout for its sum
        column = jnp.where(places == k, columns, nothing).sum(1)
        row = lanes.load_row(w, k, slice(None))
        gate = gate + lanes.spread_column(column) * lanes.spread_row(row)
    y[here, :] = ((lanes.load(x, here, slice(None)) + found) * gate).astype(y.dtype)


def why_not(x: Array, f: Array, w: Array, b: Array) -> str | None:
    """None where the kernel serves; else device, types or sizes that it does not."""
    channels = x.shape[-1]
    if channels > WIDEST:
        return f"it takes up to {WIDEST} channels, these are {channels}"
    return devices.why_not(x, f, w, b)


KERNEL = Kernel(call=call, why_not=why_not, unproved=lambda: devices.unproved(NAME))
