"""Attention maps that outlive the block that made them: windows and grids, made or shared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from esrjax.network.layers import LayerNorm, Linear, Sequential, normal, parameter
from esrjax.network.words import einsum, softmax

from . import windows
from .feed_forward import GatedFeedForward

SIDE = 8  # of windows and grids, pixels
RING = 4  # around a window, pixels
EPS = 1e-6  # of the layer norms


# --- who sees whom -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Local:
    """Windows of 8 x 8 pixels, which also see a pattern of the 16 x 16 around them."""

    pattern: str

    def queries(self, x: Array) -> Array:
        return windows.tiles(x, SIDE, SIDE)

    def keys(self, x: Array) -> Array:
        around = windows.surroundings(x, SIDE, RING)
        return jnp.take(around, PATTERNS[self.pattern], axis=2, mode="clip")

    def picture(self, tokens: Array, like: Array) -> Array:
        return windows.from_tiles(tokens, SIDE, SIDE, *like.shape[1:3])


@dataclass(frozen=True)
class Global:
    """Grids of 8 x 8 pixels over the whole picture, which also see `rows` x `columns` between.

    Seven lie halfway between the grid's own, eight on them.
    """

    rows: int
    columns: int

    def queries(self, x: Array) -> Array:
        return windows.combs(x, SIDE, SIDE)

    def keys(self, x: Array) -> Array:
        h, w = (side // SIDE for side in x.shape[1:3])
        top, left = h // 2 * (SIDE - self.rows), w // 2 * (SIDE - self.columns)
        between = x[:, top : top + self.rows * h, left : left + self.columns * w]
        return jnp.concatenate(
            [self.queries(x), windows.combs(between, self.rows, self.columns)], axis=2
        )

    def picture(self, tokens: Array, like: Array) -> Array:
        return windows.from_combs(tokens, SIDE, SIDE, *like.shape[1:3])


def patterns() -> Mapping[str, NDArray[np.int32]]:
    """Where in the 16 x 16 around a window its keys lie, row by row; the window always does."""
    row, column = np.indices((SIDE + 2 * RING,) * 2)
    inside, ends = np.arange(RING, RING + SIDE), (0, 1, 2, 13, 14, 15)
    seen = {
        "star": (row == 8) | (column == 8) | (row == column) | (row == 15 - column),
        "cross": np.isin(row, (7, 8)) | np.isin(column, (7, 8)),
        "corner": np.isin(row, ends) & np.isin(column, ends),
    }
    centre = np.isin(row, inside) & np.isin(column, inside)
    # Not of 64 bits: jax keeps what it makes of a constant, whatever becomes of its width.
    return {n: np.flatnonzero(s | centre).astype(np.int32) for n, s in seen.items()}


PATTERNS = patterns()


def buffers(net: nnx.Module) -> dict[str, NDArray[np.int64]]:
    """The positions of keys and queries, which the official attention keeps in its files."""
    centre = [
        16 * row + column for row in range(RING, RING + SIDE) for column in range(RING, RING + SIDE)
    ]
    held: dict[str, NDArray[np.int64]] = {}
    for path, part in nnx.iter_modules(net):
        if isinstance(cut := getattr(part, "cut", None), Local):
            place = ".".join([*map(str, path), "ext_unfold"])
            held[f"{place}.sample_indices"] = PATTERNS[cut.pattern].astype(np.int64)
            held[f"{place}.center_indices"] = np.array(centre)
    return held


# --- spatial attention -------------------------------------------------------------------------


class Attention(nnx.Module):
    """Makes its map: `(N, h, w, C) -> (N, h, w, C)` and `(N, sets, 64, keys)`."""

    def __init__(self, wide: int, cut: Local | Global, *, rngs: nnx.Rngs):
        self.cut = cut
        self.to_q = Linear(wide, wide, bias=False, rngs=rngs)
        self.to_kv = Linear(wide, 2 * wide, bias=False, rngs=rngs)
        self.to_out = Sequential([Linear(wide, wide, bias=False, rngs=rngs)])

    def bias(self) -> Array:
        """What is added to the logits: `(1, 64, keys)`."""
        raise NotImplementedError

    def __call__(self, x: Array, given: Array | None) -> tuple[Array, Array]:
        q = self.to_q(self.cut.queries(x)) * x.shape[-1] ** -0.5
        k, v = jnp.split(self.to_kv(self.cut.keys(x)), 2, axis=-1)
        seen = softmax(einsum("nsqc,nskc->nsqk", q, k) + self.bias()[None])
        y = self.to_out(einsum("nsqk,nskc->nsqc", seen, v))
        return self.cut.picture(y, like=x), seen


class LocalAttention(Attention):
    """A bias for every query and key."""

    def __init__(self, wide: int, cut: Local, *, rngs: nnx.Rngs):
        super().__init__(wide, cut, rngs=rngs)
        self.rel_pos_bias = parameter(normal(rngs, (1, SIDE**2, len(PATTERNS[cut.pattern])), 0.02))

    def bias(self) -> Array:
        return self.rel_pos_bias[...]


class GlobalAttention(Attention):
    """A bias for every distance on the grid, and one for every query and key between."""

    def __init__(self, wide: int, cut: Global, *, rngs: nnx.Rngs):
        super().__init__(wide, cut, rngs=rngs)
        self.grid_bias = parameter(normal(rngs, ((2 * SIDE - 1) ** 2, 1), 1))
        self.extra_pos_bias = parameter(normal(rngs, (1, SIDE**2, cut.rows * cut.columns), 0.02))

    def bias(self) -> Array:
        table, positions = self.grid_bias[..., 0], windows.relative_positions(SIDE)
        grid = jnp.take(table, positions, mode="clip")
        return jnp.concatenate([grid[None], self.extra_pos_bias[...]], axis=-1)


class SharedAttention(nnx.Module):
    """Applies the map that it is given to its own values."""

    def __init__(self, wide: int, cut: Local | Global, *, rngs: nnx.Rngs):
        self.cut = cut
        self.to_v = Linear(wide, wide, bias=False, rngs=rngs)
        self.to_out = Sequential([Linear(wide, wide, bias=False, rngs=rngs)])

    def __call__(self, x: Array, given: Array) -> tuple[Array, Array]:
        v = self.to_v(self.cut.keys(x))
        y = self.to_out(einsum("nsqk,nskc->nsqc", given, v))
        return self.cut.picture(y, like=x), given


class Spatial(nnx.Module):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, wide: int, cut: Local | Global, shares: bool, *, rngs: nnx.Rngs):
        own = LocalAttention if isinstance(cut, Local) else GlobalAttention
        kind: Any = SharedAttention if shares else own
        self.cnorm = LayerNorm(wide, eps=EPS)
        self.attn = kind(wide, cut, rngs=rngs)
        self.cnorm2 = LayerNorm(wide, eps=EPS)
        self.gfn = GatedFeedForward(wide, wide, rngs=rngs)

    def __call__(self, x: Array, given: Array | None) -> tuple[Array, Array]:
        y, seen = self.attn(self.cnorm(x), given)
        x = x + y
        return x + self.gfn(self.cnorm2(x)), seen
