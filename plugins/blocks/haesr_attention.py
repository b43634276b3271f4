"""Attentions of HAESR: spatial, with maps that later blocks share, and between channels.

Attention is single-headed. Token sets are `(N, sets, L, C)`: the sets are extended local windows or
dilated grids, each with 64 queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from esrjax.nn.functional import einsum, matmul, normalize, softmax
from esrjax.nn.layers import Conv2d, LayerNorm, Linear, Sequential, normal_init, param

from .feed_forward import GatedFeedForward
from .window_attention import relative_position_index
from .window_partition import (
    grid_partition,
    grid_reverse,
    overlapping_windows,
    window_partition,
    window_reverse,
)

WINDOW_SIZE = 8  # side of windows and of grids, pixels
OVERLAP = 4  # pixels around a window that may be keys
EPS = 1e-6  # of the layer norms


# --- queries and keys ---


@dataclass(frozen=True)
class LocalWindows:
    """Extended local windows (SLA): queries are 8x8 pixels, keys a pattern of 16x16 pixels.

    Keys outside the image are zero vectors and are not masked.

    Attributes:
        pattern: "star", "cross" or "corner": which pixels outside of the window are keys. Those
            inside always are.
    """

    pattern: str

    def queries(self, x: Array) -> Array:
        """Return the queries of `x (N, h, w, C)`: `(N, h·w / 64, 64, C)`."""
        return window_partition(x, WINDOW_SIZE, WINDOW_SIZE)

    def keys(self, x: Array) -> Array:
        """Return the keys of `x (N, h, w, C)`: `(N, h·w / 64, keys, C)`."""
        neighbourhood = overlapping_windows(x, WINDOW_SIZE, OVERLAP)
        return jnp.take(neighbourhood, PATTERNS[self.pattern], axis=2, mode="clip")

    def reverse(self, tokens: Array, like: Array) -> Array:
        """Reassemble the outputs of the queries into the shape of `like`."""
        return window_reverse(tokens, WINDOW_SIZE, WINDOW_SIZE, *like.shape[1:3])


@dataclass(frozen=True)
class DilatedGrid:
    """Dilated grids (SGA): queries are 8x8 pixels spread over the image.

    The keys are the queries and `rows x columns` pixels halfway between them: 7 along an axis lie
    halfway between the 8 rows (columns) of the grid, 8 lie on them.
    """

    rows: int
    columns: int

    def queries(self, x: Array) -> Array:
        """Return the queries of `x (N, h, w, C)`: `(N, h·w / 64, 64, C)`."""
        return grid_partition(x, WINDOW_SIZE, WINDOW_SIZE)

    def keys(self, x: Array) -> Array:
        """Return the keys of `x (N, h, w, C)`: `(N, h·w / 64, 64 + rows·columns, C)`."""
        h, w = (size // WINDOW_SIZE for size in x.shape[1:3])
        top, left = h // 2 * (WINDOW_SIZE - self.rows), w // 2 * (WINDOW_SIZE - self.columns)
        extra_pixels = x[:, top : top + self.rows * h, left : left + self.columns * w]
        return jnp.concatenate(
            [self.queries(x), grid_partition(extra_pixels, self.rows, self.columns)], axis=2
        )

    def reverse(self, tokens: Array, like: Array) -> Array:
        """Reassemble the outputs of the queries into the shape of `like`."""
        return grid_reverse(tokens, WINDOW_SIZE, WINDOW_SIZE, *like.shape[1:3])


def _patterns() -> Mapping[str, NDArray[np.int32]]:
    """Return the flat index of each key in the 16x16 neighbourhood, in raster order, by pattern."""
    row, column = np.indices((WINDOW_SIZE + 2 * OVERLAP,) * 2)
    center, corners = np.arange(OVERLAP, OVERLAP + WINDOW_SIZE), (0, 1, 2, 13, 14, 15)
    masks = {
        "star": (row == 8) | (column == 8) | (row == column) | (row == 15 - column),
        "cross": np.isin(row, (7, 8)) | np.isin(column, (7, 8)),
        "corner": np.isin(row, corners) & np.isin(column, corners),
    }
    is_center = np.isin(row, center) & np.isin(column, center)
    # int32, because JAX caches the constant it makes of an array, also across jax_enable_x64
    return {name: np.flatnonzero(mask | is_center).astype(np.int32) for name, mask in masks.items()}


PATTERNS = _patterns()


def torch_buffers(net: nnx.Module) -> dict[str, NDArray[np.int64]]:
    """Return the constant index buffers that the official attention stores in checkpoints."""
    inside = range(OVERLAP, OVERLAP + WINDOW_SIZE)
    center = [16 * row + column for row in inside for column in inside]
    tensors: dict[str, NDArray[np.int64]] = {}
    for path, module in nnx.iter_modules(net):
        if isinstance(sampling := getattr(module, "sampling", None), LocalWindows):
            prefix = ".".join([*map(str, path), "ext_unfold"])
            tensors[f"{prefix}.sample_indices"] = PATTERNS[sampling.pattern].astype(np.int64)
            tensors[f"{prefix}.center_indices"] = np.array(center)
    return tensors


# --- spatial attention ---


class Attention(nnx.Module):
    """Attention over `sampling`'s token sets that also returns its map.

    Called with `x (N, h, w, C)` and an ignored map; returns the same shape and the attention
    probabilities `(N, sets, 64, keys)`.
    """

    def __init__(self, channels: int, sampling: LocalWindows | DilatedGrid, *, rngs: nnx.Rngs):
        self.sampling = sampling
        self.to_q = Linear(channels, channels, bias=False, rngs=rngs)
        self.to_kv = Linear(channels, 2 * channels, bias=False, rngs=rngs)
        self.to_out = Sequential([Linear(channels, channels, bias=False, rngs=rngs)])

    def bias(self) -> Array:
        """Return the position bias that is added to the logits: `(1, 64, keys)`."""
        raise NotImplementedError

    def __call__(self, x: Array, attn_map: Array | None) -> tuple[Array, Array]:
        q = self.to_q(self.sampling.queries(x)) * x.shape[-1] ** -0.5
        k, v = jnp.split(self.to_kv(self.sampling.keys(x)), 2, axis=-1)
        attn = softmax(einsum("nsqc,nskc->nsqk", q, k) + self.bias()[None])
        y = self.to_out(einsum("nsqk,nskc->nsqc", attn, v))
        return self.sampling.reverse(y, like=x), attn


class LocalAttention(Attention):
    """Attention in extended local windows, with a learned bias for every query and key."""

    def __init__(self, channels: int, sampling: LocalWindows, *, rngs: nnx.Rngs):
        super().__init__(channels, sampling, rngs=rngs)
        self.rel_pos_bias = param(
            normal_init(rngs, (1, WINDOW_SIZE**2, len(PATTERNS[sampling.pattern])), 0.02)
        )

    def bias(self) -> Array:
        return self.rel_pos_bias[...]


class GlobalAttention(Attention):
    """Attention on dilated grids: a relative bias for keys on the grid, a dense one for the
    others.
    """

    def __init__(self, channels: int, sampling: DilatedGrid, *, rngs: nnx.Rngs):
        super().__init__(channels, sampling, rngs=rngs)
        self.grid_bias = param(normal_init(rngs, ((2 * WINDOW_SIZE - 1) ** 2, 1), 1))
        self.extra_pos_bias = param(
            normal_init(rngs, (1, WINDOW_SIZE**2, sampling.rows * sampling.columns), 0.02)
        )

    def bias(self) -> Array:
        grid_table, index = self.grid_bias[..., 0], relative_position_index(WINDOW_SIZE)
        grid_bias = jnp.take(grid_table, index, mode="clip")
        return jnp.concatenate([grid_bias[None], self.extra_pos_bias[...]], axis=-1)


class SharedAttention(nnx.Module):
    """Attention that applies a given map `(N, sets, 64, keys)` to its own values."""

    def __init__(self, channels: int, sampling: LocalWindows | DilatedGrid, *, rngs: nnx.Rngs):
        self.sampling = sampling
        self.to_v = Linear(channels, channels, bias=False, rngs=rngs)
        self.to_out = Sequential([Linear(channels, channels, bias=False, rngs=rngs)])

    def __call__(self, x: Array, attn_map: Array) -> tuple[Array, Array]:
        v = self.to_v(self.sampling.keys(x))
        y = self.to_out(einsum("nsqk,nskc->nsqc", attn_map, v))
        return self.sampling.reverse(y, like=x), attn_map


class SpatialAttentionLayer(nnx.Module):
    """Spatial attention and a gated feed-forward, both pre-norm and residual (SLA and SGA).

    Called with `x (N, h, w, C)` and the map to share, or None; returns the same shape and its map.

    Args:
        channels: `C`.
        sampling: Which pixels are queries and keys.
        is_shared: Apply the given map instead of computing one.
    """

    def __init__(
        self,
        channels: int,
        sampling: LocalWindows | DilatedGrid,
        is_shared: bool,
        *,
        rngs: nnx.Rngs,
    ):
        attention = LocalAttention if isinstance(sampling, LocalWindows) else GlobalAttention
        cls: Any = SharedAttention if is_shared else attention
        self.cnorm = LayerNorm(channels, eps=EPS)
        self.attn = cls(channels, sampling, rngs=rngs)
        self.cnorm2 = LayerNorm(channels, eps=EPS)
        self.gfn = GatedFeedForward(channels, channels, rngs=rngs)

    def __call__(self, x: Array, attn_map: Array | None) -> tuple[Array, Array]:
        y, attn = self.attn(self.cnorm(x), attn_map)
        x = x + y
        return x + self.gfn(self.cnorm2(x)), attn


# --- channel attention ---


class PartitionedChannelAttention(nnx.Module):
    """Channel attention over each 8x8 window, or with `is_grid` over all pixels 8 apart.

    Maps `(N, h, w, C)` to the same shape; `h` and `w` must be multiples of 8.
    """

    def __init__(self, channels: int, is_grid: bool, *, rngs: nnx.Rngs):
        self.is_grid = is_grid
        self.qkv = Conv2d(channels, 3 * channels, 1, bias=False, rngs=rngs)
        self.qkv_dwconv = Conv2d(
            3 * channels, 3 * channels, groups=3 * channels, bias=False, rngs=rngs
        )
        self.temperature = param(np.ones((1, 1, 1)))
        self.project_out = Conv2d(channels, channels, 1, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        height, width = x.shape[1:3]
        partition, reverse = window_partition, window_reverse
        set_h = set_w = WINDOW_SIZE
        if self.is_grid:
            partition, reverse = grid_partition, grid_reverse
            set_h, set_w = height // WINDOW_SIZE, width // WINDOW_SIZE
        q, k, v = jnp.split(partition(self.qkv_dwconv(self.qkv(x)), set_h, set_w), 3, axis=-1)
        logits = matmul(normalize(q, -2).mT, normalize(k, -2)) * self.temperature[...][None]
        y = matmul(v, softmax(logits).mT)
        return self.project_out(reverse(y, set_h, set_w, height, width))


class TrBlockC(nnx.Module):
    """Channel attention over windows, then over grids, each with its gated feed-forward.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.canorm1, self.cnorm1, self.canorm2, self.cnorm2 = (
            LayerNorm(channels, eps=EPS) for _ in range(4)
        )
        self.cttn1, self.cttn2 = (
            PartitionedChannelAttention(channels, is_grid, rngs=rngs) for is_grid in (False, True)
        )
        self.gfn1, self.gfn2 = (GatedFeedForward(channels, channels, rngs=rngs) for _ in range(2))

    def __call__(self, x: Array) -> Array:
        x = x + self.cttn1(self.canorm1(x))
        x = x + self.gfn1(self.cnorm1(x))
        x = x + self.cttn2(self.canorm2(x))
        return x + self.gfn2(self.cnorm2(x))
