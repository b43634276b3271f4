"""Attention in windows: every pixel attends to those of its window, or to some more around it.

Source: Swin Transformer (arXiv:2103.14030), section 3.2; windows that overlap, HAT
(arXiv:2205.04437), section 3.2.4. Features are `(N, h, w, C)`, their sides filled by windows.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.network import ops
from esrjax.network.layers import Linear, normal, parameter

from . import windows


class WindowAttention(nnx.Module):
    """`qkv (N, h, w, 3·C) -> (N, h, w, C)`: in windows of `side` pixels, rolled by `shift`.

    ring: pixels around each window to which it attends too; those beyond the picture are zero.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        side: int,
        shift: int = 0,
        *,
        ring: int = 0,
        rngs: nnx.Rngs,
    ):
        if channels % heads:
            raise ValueError(f"{channels} channels are not shared evenly by {heads} heads")
        self.heads, self.side, self.shift, self.ring = heads, side, shift, ring
        table = normal(rngs, ((2 * (side + ring) - 1) ** 2, heads), 0.02)
        self.relative_position_bias_table = parameter(table)
        self.proj = Linear(channels, channels, rngs=rngs)

    def __call__(self, qkv: Array) -> Array:
        high, wide = qkv.shape[1:3]
        side, shift = self.side, self.shift
        qkv = jnp.roll(qkv, (-shift, -shift), (1, 2)) if shift else qkv
        q, k, v = (windows.heads(part, self.heads) for part in self.cut(qkv))
        bias = self.relative_position_bias_table[...][self.positions()].transpose(2, 0, 1)
        mask = windows.shift_mask(high, wide, side, shift) if shift else None
        mask = None if mask is None else jnp.asarray(mask, qkv.dtype)
        y = self.proj(windows.from_heads(ops.window_attention(q, k, v, bias, mask)))
        y = windows.from_tiles(y, side, side, high, wide)
        return jnp.roll(y, (shift, shift), (1, 2)) if shift else y

    def cut(self, qkv: Array) -> list[Array]:
        """Queries, keys and values of every window."""
        if not self.ring:
            return jnp.split(windows.tiles(qkv, self.side, self.side), 3, -1)
        q, k, v = jnp.split(qkv, 3, -1)
        around = windows.surroundings(jnp.concatenate([k, v], -1), self.side, self.ring)
        return [windows.tiles(q, self.side, self.side), *jnp.split(around, 2, -1)]

    def positions(self) -> windows.Positions:
        """Row of the table for every query and key."""
        if self.ring:
            return windows.overlapping_positions(self.side, self.ring)
        return windows.relative_positions(self.side)


class SelfAttention(WindowAttention):
    """Window attention that makes its own queries, keys and values: `(N, h, w, C)` to the same."""

    def __init__(self, channels: int, heads: int, side: int, shift: int, *, rngs: nnx.Rngs):
        super().__init__(channels, heads, side, shift, rngs=rngs)
        self.qkv = Linear(channels, 3 * channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return super().__call__(self.qkv(x))
