"""What a walk keeps in shared memory, and whether there is room for it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from . import devices
from .devices import Block

SHARED = 232_448  # bytes that a program may have (Hopper)
COLUMNS = (64, 128)  # pixels of a strip's line
UNIT = 16  # channels are filled up to a multiple of it
TF32 = (None, "default", "high", "tensorfloat32", "bfloat16", "TF32_TF32_F32")  # or less exact
APART = 8  # numbers between two lines of sums, so that they lie in other banks


def filled(channels: int) -> int:
    """How many channels a walk makes of them."""
    return channels + -channels % UNIT


def shapes(columns: int, channels: int, gated: bool) -> dict[str, tuple[int, ...]]:
    """What lies in shared memory, by the names of `Refs`; `sums` in float32, else the type of u."""
    line = (columns, channels)
    held = {
        "taps": (9, channels, 3 * channels),
        "lines": (3, 3, *line),
        "sums": (columns + 2, channels + APART),
        "made": line,
    }
    return {**held, "gating": (channels, channels), "found": line} if gated else held


def fitting(block: Block, u: Array, gated: bool) -> Block:
    """The block, its columns no more than there is room for, or as few as can be."""
    found = [columns for columns in COLUMNS if _bytes(u, columns, gated) <= SHARED]
    return {**block, "columns": min(block["columns"], max(found, default=min(COLUMNS)))}


def why_not(u: Array, *weights: Array, gated: bool) -> str | None:
    """None where a walk serves; else device, types, sizes or precision that it does not."""
    asked = jax.default_matmul_precision.value
    if asked not in TF32 and u.dtype == jnp.float32:
        return f"it multiplies float32 in TF32, and the precision {asked!r} is asked for"
    n, h, w, channels = u.shape
    inside: Any = jax.ShapeDtypeStruct((n, h, max(w, min(COLUMNS)), filled(channels)), u.dtype)
    return devices.why_not(u, *weights, inside) or devices.newer() or _too_large(u, gated)


def _too_large(u: Array, gated: bool) -> str | None:
    needed = _bytes(u, min(COLUMNS), gated)
    if needed <= SHARED:
        return None
    return f"{u.shape[-1]} channels in {u.dtype} need {needed} bytes of shared memory, of {SHARED}"


def _bytes(u: Array, columns: int, gated: bool) -> int:
    held = shapes(columns, filled(u.shape[-1]), gated)
    sizes = {name: 4 if name == "sums" else u.dtype.itemsize for name in held}
    return sum(math.prod(shape) * sizes[name] for name, shape in held.items())
