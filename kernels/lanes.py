"""One lane, one row: how these kernels lay their work over the 128 lanes of a warpgroup.

A tile is `(rows, columns)`. Every lane holds whole rows in its registers, so that sums along a row
never leave it, no shared memory is used, and columns need no padding. Layouts are those of
Pallas on Mosaic GPU; its interpreter knows no lanes, so there they fall away and nothing else does.
"""

import functools
import inspect
import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

LANES = 128
WIDEST = 64  # columns; the registers of a lane do not hold three rows that are much longer


@functools.cache
def pallas() -> Any:
    """Pallas, imported at a kernel's first use: where none runs nobody waits for it."""
    from jax.experimental import pallas

    return pallas


@functools.cache
def mosaic() -> Any:
    """Pallas on Mosaic GPU, likewise."""
    from jax.experimental.pallas import mosaic_gpu

    return mosaic_gpu


def load(ref: Any, layout: Any) -> Array:
    """What is in memory, in a layout: JAX 0.10 asks for an index too, 0.12 knows none."""
    asks = inspect.signature(mosaic().load).parameters
    index = {"idx": ()} if "idx" in asks and asks["idx"].default is inspect.Parameter.empty else {}
    return mosaic().load(ref, layout=layout, optimized=False, **index)


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """Tiles of `rows` x `columns` over the lanes; `rows` is a multiple of 128, `columns` small.

    interpret: parameters of the interpreter, or None for the device.
    """

    rows: int
    columns: int
    interpret: Any = None

    @property
    def tile(self) -> Any:
        """Rows in lanes; up to four neighbouring columns travel together."""
        return mosaic().Layout.TCGEN05_TMEM_NATIVE(math.gcd(self.columns, 4))

    @property
    def single(self) -> Any:
        """The same tile, each column by itself: one that can be cut."""
        return mosaic().Layout.TCGEN05_TMEM_NATIVE(1)

    def load(self, ref: Any, *index: Any) -> Array:
        """A tile in float32."""
        return self._load(ref, index, self.tile)

    def load_row(self, ref: Any, *index: Any) -> Array:
        """A vector `(columns,)` in float32, the same in every lane."""
        return self._load(ref, index, self.tile.reduce(0))

    def load_column(self, ref: Any, *index: Any) -> Array:
        """A vector `(rows,)` in float32, each lane its own."""
        return self._load(ref, index, self.tile.reduce(1))

    def spread_row(self, row: Array) -> Array:
        """`(columns,)` to a tile."""
        return self.cast(lax.broadcast_in_dim(row, (self.rows, self.columns), (1,)), self.tile)

    def spread_column(self, column: Array) -> Array:
        """`(rows,)` to a tile."""
        return self.cast(lax.broadcast_in_dim(column, (self.rows, self.columns), (0,)), self.tile)

    def full(self, value: float) -> Array:
        """A tile of one value."""
        full = jnp.full((self.rows, self.columns), value, jnp.float32)
        return self.cast(full, self.tile)

    def full_column(self, value: float) -> Array:
        """`(rows,)` of one value."""
        return self.cast(jnp.full((self.rows,), value, jnp.float32), self.tile.reduce(1))

    def cast(self, x: Array, layout: Any) -> Array:
        """`x` in another layout."""
        return mosaic().layout_cast(x, layout) if self.interpret is None else x

    def _load(self, ref: Any, index: tuple[Any, ...], layout: Any) -> Array:
        if self.interpret is None:
            x = load(ref.at[index], layout)
        else:
            x = ref[index]
        return x.astype(jnp.float32)


def first(tile: Any, rows: int, of: int) -> Any:
    """First row of a tile; the last tile of `of` rows moves up to end with them.

    Its upper rows are then made twice, to the same numbers: no lane ever needs to be masked.
    """
    return jnp.minimum(tile * rows, of - rows)
