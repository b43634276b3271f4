"""Multi-head attention within (shifted, possibly overlapping) windows, its biases and masks.

Source: Swin Transformer (arXiv:2103.14030), section 3.2; overlapping windows: HAT
(arXiv:2205.04437), section 3.2.4. Features are `(N, h, w, C)` with `h` and `w` multiples of the
window size. `L` and `K` are the numbers of queries and keys of a window; they are equal without
overlap.
"""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from esrjax.nn import ops
from esrjax.nn.layers import Linear, normal_init, param
from esrjax.nn.masking import Dim, arange, dim_as_array

from .window_partition import overlapping_windows, window_partition, window_reverse

PositionIndex = NDArray[np.intp]


class WindowAttention(nnx.Module):
    """Window attention of given queries, keys and values: `qkv (N, h, w, 3·C) -> (N, h, w, C)`.

    Includes the relative position bias and the output projection, not the projection to `qkv`.

    Args:
        channels: `C`.
        num_heads: Attention heads; must divide `C`.
        window_size: Side of a window in pixels.
        shift_size: Pixels by which the feature map is shifted cyclically, up and to the left,
            before it is cut into windows; 0 for no shift.
        overlap: Pixels by which the window of keys and values extends beyond that of the queries
            on every side; outside the image they are zero and are not masked, as in HAT.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window_size: int,
        shift_size: int = 0,
        *,
        overlap: int = 0,
        rngs: nnx.Rngs,
    ):
        if channels % num_heads:
            raise ValueError(f"channels ({channels}) must be divisible by num_heads ({num_heads})")
        self.num_heads, self.window_size = num_heads, window_size
        self.shift_size, self.overlap = shift_size, overlap
        table = normal_init(rngs, ((2 * (window_size + overlap) - 1) ** 2, num_heads), 0.02)
        self.relative_position_bias_table = param(table)
        self.proj = Linear(channels, channels, rngs=rngs)

    def __call__(self, qkv: Array) -> Array:
        height, width = qkv.shape[1:3]
        window_size, shift_size = self.window_size, self.shift_size
        qkv = jnp.roll(qkv, (-shift_size, -shift_size), (1, 2)) if shift_size else qkv
        q, k, v = (split_heads(tokens, self.num_heads) for tokens in self.partition_qkv(qkv))
        bias = self.relative_position_bias_table[...][self.position_index()].transpose(2, 0, 1)
        mask = shift_mask(height, width, window_size, shift_size) if shift_size else None
        mask = None if mask is None else jnp.asarray(mask, qkv.dtype)
        y = self.proj(merge_heads(ops.window_attention(q, k, v, bias, mask)))
        y = window_reverse(y, window_size, window_size, height, width)
        return jnp.roll(y, (shift_size, shift_size), (1, 2)) if shift_size else y

    def partition_qkv(self, qkv: Array) -> list[Array]:
        """Return queries `(N, windows, L, C)` and keys and values `(N, windows, K, C)`."""
        if not self.overlap:
            return jnp.split(window_partition(qkv, self.window_size, self.window_size), 3, -1)
        q, k, v = jnp.split(qkv, 3, -1)
        kv_windows = overlapping_windows(
            jnp.concatenate([k, v], -1), self.window_size, self.overlap
        )
        return [
            window_partition(q, self.window_size, self.window_size),
            *jnp.split(kv_windows, 2, -1),
        ]

    def position_index(self) -> PositionIndex:
        """Return the row of the bias table for every query and key: `(L, K)`."""
        if self.overlap:
            return overlapping_position_index(self.window_size, self.overlap)
        return relative_position_index(self.window_size)


class WindowSelfAttention(WindowAttention):
    """Window attention with its own projection to queries, keys and values.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(
        self, channels: int, num_heads: int, window_size: int, shift_size: int, *, rngs: nnx.Rngs
    ):
        super().__init__(channels, num_heads, window_size, shift_size, rngs=rngs)
        self.qkv = Linear(channels, 3 * channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return super().__call__(self.qkv(x))


# --- attention heads, relative positions, masks ---


def split_heads(tokens: Array, num_heads: int) -> Array:
    """`(N, windows, L, C) -> (N, windows, heads, L, C / heads)`, heads of consecutive channels."""
    *batch_dims, length, c = tokens.shape
    return tokens.reshape(*batch_dims, length, num_heads, c // num_heads).swapaxes(-2, -3)


def merge_heads(x: Array) -> Array:
    """`(N, windows, heads, L, C / heads) -> (N, windows, L, C)`, the inverse of `split_heads`."""
    *batch_dims, num_heads, length, c = x.shape
    return x.swapaxes(-2, -3).reshape(*batch_dims, length, num_heads * c)


def relative_position_index(window_size: int) -> PositionIndex:
    """Return the row of the bias table for every query and key of a window.

    The table has `(2·window_size − 1)²` rows. Source: Swin (arXiv:2103.14030), section 3.2.

    Returns:
        `(window_size², window_size²)`, query by key.
    """
    row, column = np.divmod(np.arange(window_size**2), window_size)
    offsets = [axis[:, None] - axis[None] + window_size - 1 for axis in (row, column)]
    return offsets[0] * (2 * window_size - 1) + offsets[1]


def overlapping_position_index(window_size: int, overlap: int) -> PositionIndex:
    """Return the row of the bias table for every query and key of an overlapping window.

    The offset is from query to key as in HAT's released code, so many rows are negative and index
    the table from its end. Trained weights depend on this.

    Returns:
        `(window_size², (window_size + 2·overlap)²)`, query by key.
    """
    key_size = window_size + 2 * overlap
    query, key = (np.divmod(np.arange(n**2), n) for n in (window_size, key_size))
    offsets = [
        k[None] - q[:, None] + window_size - key_size + 1 for q, k in zip(query, key, strict=True)
    ]
    return offsets[0] * (window_size + key_size - 1) + offsets[1]


def shift_mask(height: Dim, width: Dim, window_size: int, shift_size: int) -> Array:
    """Return the attention mask of shifted windows: 0 for pairs that are adjacent, −100 for others.

    Cyclic shifting by `−shift_size` brings opposite edges of the image into one window; a pixel
    must not attend across them. Source: Swin (arXiv:2103.14030), section 3.2.

    Returns:
        float32 `(windows, window_size², window_size²)`, query by key.
    """

    def region_labels(n: Dim) -> Array:
        is_past = (arange(n) >= dim_as_array(n - edge) for edge in (window_size, shift_size))
        return functools.reduce(jnp.add, (mask.astype(jnp.int32) for mask in is_past))

    labels = 3 * region_labels(height)[:, None] + region_labels(width)[None]
    windows = window_partition(labels[None, :, :, None], window_size, window_size)[0, ..., 0]
    return jnp.where(windows[:, :, None] == windows[:, None], 0.0, -100.0)
