"""Feed-forward blocks of transformers. All map `(N, h, w, C)` to the same shape."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.nn.functional import gelu
from esrjax.nn.layers import Conv2d, LayerNorm, Linear


class GatedFeedForward(nnx.Module):
    """Gated-Dconv feed-forward: `gelu(a) · b` of two depthwise 3x3 branches of `hidden` channels.

    Source: GDFN of Restormer (arXiv:2111.09881).
    """

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        expanded = 2 * hidden
        self.project_in = Conv2d(channels, expanded, 1, bias=False, rngs=rngs)
        self.dwconv = Conv2d(expanded, expanded, groups=expanded, bias=False, rngs=rngs)
        self.project_out = Conv2d(hidden, channels, 1, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        gate, value = jnp.split(self.dwconv(self.project_in(x)), 2, -1)
        return self.project_out(gelu(gate) * value)


class MLP(nnx.Module):
    """Linear to `hidden` channels, GELU, linear back."""

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(channels, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(gelu(self.fc1(x)))


class ConvFFN(nnx.Module):
    """Linear to `hidden` channels, a residual depthwise 5x5, linear back."""

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(channels, hidden, rngs=rngs)
        self.dwconv = Conv2d(hidden, hidden, 5, groups=hidden, rngs=rngs)
        self.fc2 = Linear(hidden, channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        hidden = gelu(self.fc1(x))
        return self.fc2(hidden + gelu(self.dwconv(hidden)))


class GatedMLP(nnx.Module):
    """Linear to `hidden` channels, a spatial gate that halves them, linear back."""

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(channels, hidden, rngs=rngs)
        self.sg = SpatialGate(hidden // 2, rngs=rngs)
        self.fc2 = Linear(hidden // 2, channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.sg(gelu(self.fc1(x))))


class SpatialGate(nnx.Module):
    """Half of the channels times a depthwise 5x5 of the other, normalized half.

    Maps `(N, h, w, 2·channels) -> (N, h, w, channels)`.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(channels)
        self.conv = Conv2d(channels, channels, 5, groups=channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        value, gate = jnp.split(x, 2, -1)
        return value * self.conv(self.norm(gate))
