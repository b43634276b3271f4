"""Multi-head attention within (shifted, possibly overlapping) windows.

Source: Swin Transformer (arXiv:2103.14030), section 3.2; overlapping windows: HAT
(arXiv:2205.04437), section 3.2.4. Features are `(N, h, w, C)` with `h` and `w` multiples of the
window size. `L` and `K` are the numbers of queries and keys of a window; they are equal without
overlap.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.nn import ops
from esrjax.nn.layers import Linear, normal_init, param

from . import windows


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
        q, k, v = (
            windows.split_heads(tokens, self.num_heads) for tokens in self.partition_qkv(qkv)
        )
        bias = self.relative_position_bias_table[...][self.position_index()].transpose(2, 0, 1)
        mask = windows.shift_mask(height, width, window_size, shift_size) if shift_size else None
        mask = None if mask is None else jnp.asarray(mask, qkv.dtype)
        y = self.proj(windows.merge_heads(ops.window_attention(q, k, v, bias, mask)))
        y = windows.window_reverse(y, window_size, window_size, height, width)
        return jnp.roll(y, (shift_size, shift_size), (1, 2)) if shift_size else y

    def partition_qkv(self, qkv: Array) -> list[Array]:
        """Return queries `(N, windows, L, C)` and keys and values `(N, windows, K, C)`."""
        if not self.overlap:
            return jnp.split(
                windows.window_partition(qkv, self.window_size, self.window_size), 3, -1
            )
        q, k, v = jnp.split(qkv, 3, -1)
        kv_windows = windows.overlapping_windows(
            jnp.concatenate([k, v], -1), self.window_size, self.overlap
        )
        return [
            windows.window_partition(q, self.window_size, self.window_size),
            *jnp.split(kv_windows, 2, -1),
        ]

    def position_index(self) -> windows.PositionIndex:
        """Return the row of the bias table for every query and key: `(L, K)`."""
        if self.overlap:
            return windows.overlapping_position_index(self.window_size, self.overlap)
        return windows.relative_position_index(self.window_size)


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
