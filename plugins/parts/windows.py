"""Windows: how pictures are cut into sets of pixels that attend to each other, and put together.

Pictures are `(N, h, w, C)`, sets of tokens `(N, windows, L, C)`; both run row by row.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from numpy.typing import NDArray

from esrjax.network.extent import Extent, known, positions, whole

Positions = NDArray[np.intp]


def fill(x: Array, multiple: int, mode: str = "reflect") -> Array:
    """`x` mirrored below and to the right, until its sides are multiples of `multiple`.

    mode: "reflect" does not repeat the last row and column, "symmetric" does.
    """
    for axis in (1, 2):
        old = x.shape[axis]
        new = (old + multiple - 1) // multiple * multiple
        if not (known(old) and new == old):
            x = jnp.take(x, _mirrored(old, new, int(mode == "symmetric")), axis, mode="clip")
    return x


def _mirrored(old: Extent, new: Extent, edges: int) -> Array:
    """Which of `old` pixels stands at each of `new`; edges: 1 where the last one is repeated."""
    place, there = positions(new), whole(old - 1)
    back = 2 * there + edges
    place = lax.rem(place, back + edges)
    return jnp.minimum(place, back - place)


# --- tiles and combs ---------------------------------------------------------------------------


def tiles(x: Array, h: int, w: int) -> Array:
    """Cut into neighbouring tiles of `h` x `w` pixels: `(N, tiles, h·w, C)`."""
    n, high, wide, c = x.shape
    x = x.reshape(n, high // h, h, wide // w, w, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, -1, h * w, c)


def from_tiles(tokens: Array, h: int, w: int, high: int, wide: int) -> Array:
    """The picture of `high` x `wide` pixels that `tiles` cut."""
    n, c = tokens.shape[0], tokens.shape[-1]
    x = tokens.reshape(n, high // h, wide // w, h, w, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, high, wide, c)


def combs(x: Array, h: int, w: int) -> Array:
    """Cut into sets of `h` x `w` pixels as far apart as can be: `(N, sets, h·w, C)`."""
    n, high, wide, c = x.shape
    x = x.reshape(n, h, high // h, w, wide // w, c).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(n, -1, h * w, c)


def from_combs(tokens: Array, h: int, w: int, high: int, wide: int) -> Array:
    """The picture of `high` x `wide` pixels that `combs` cut."""
    n, c = tokens.shape[0], tokens.shape[-1]
    x = tokens.reshape(n, high // h, wide // w, h, w, c).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(n, high, wide, c)


def surroundings(x: Array, side: int, ring: int) -> Array:
    """The tiles of `side` x `side` with `ring` more pixels around each, zero outside the picture.

    `(N, tiles, (side + 2·ring)², C)`.
    """
    _, high, wide, _ = x.shape
    around = side + 2 * ring
    x = jnp.pad(x, ((0, 0), (ring, ring), (ring, ring), (0, 0)))
    for axis, count in ((1, high // side), (2, wide // side)):
        where = (side * positions(count)[:, None] + positions(around)[None]).ravel()
        x = jnp.take(x, where, axis, mode="clip")
    return tiles(x, around, around)


# --- heads, positions, masks -------------------------------------------------------------------


def heads(tokens: Array, count: int) -> Array:
    """`(N, windows, L, C) -> (N, windows, heads, L, C / heads)`: heads of neighbouring channels."""
    *lead, length, c = tokens.shape
    return tokens.reshape(*lead, length, count, c // count).swapaxes(-2, -3)


def from_heads(x: Array) -> Array:
    """What `heads` cut."""
    *lead, count, length, c = x.shape
    return x.swapaxes(-2, -3).reshape(*lead, length, count * c)


def relative_positions(side: int) -> Positions:
    """Row of the table of `(2·side − 1)²` biases for every query and key: `(side², side²)`."""
    row, column = np.divmod(np.arange(side**2), side)
    apart = [axis[:, None] - axis[None] + side - 1 for axis in (row, column)]
    return apart[0] * (2 * side - 1) + apart[1]


def overlapping_positions(side: int, ring: int) -> Positions:
    """The same for keys with a ring around the window: `(side², (side + 2·ring)²)`.

    As HAT's released code counts, from key to query, so that many are negative: from the end.
    """
    around = side + 2 * ring
    query, key = (np.divmod(np.arange(n**2), n) for n in (side, around))
    apart = [k[None] - q[:, None] + side - around + 1 for q, k in zip(query, key, strict=True)]
    return apart[0] * (side + around - 1) + apart[1]


def shift_mask(high: Extent, wide: Extent, side: int, shift: int) -> Array:
    """0 where query and key lie together in the picture, −100 where only rolling joined them.

    For the tiles of a picture rolled by `−shift`: `(tiles, side², side²)`.
    """

    def regions(n: Extent) -> Array:
        past = (positions(n) >= whole(n - edge) for edge in (side, shift))
        return functools.reduce(jnp.add, (each.astype(jnp.int32) for each in past))

    labels = 3 * regions(high)[:, None] + regions(wide)[None]
    cut = tiles(labels[None, :, :, None], side, side)[0, ..., 0]
    return jnp.where(cut[:, :, None] == cut[:, None], 0.0, -100.0)
