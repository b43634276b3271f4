"""Feed-forward parts: what follows attention at every pixel."""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.network.layers import Conv2d, LayerNorm, Linear
from esrjax.network.words import gelu


class GatedFeedForward(nnx.Module):
    """Two maps of `hidden` channels, each smoothed by a depthwise 3x3; the first gates the second.

    Source: Restormer (arXiv:2111.09881), its gated feed-forward.
    """

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        both = 2 * hidden
        self.project_in = Conv2d(channels, both, 1, bias=False, rngs=rngs)
        self.dwconv = Conv2d(both, both, groups=both, bias=False, rngs=rngs)
        self.project_out = Conv2d(hidden, channels, 1, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        gate, value = jnp.split(self.dwconv(self.project_in(x)), 2, -1)
        return self.project_out(gelu(gate) * value)


class MLP(nnx.Module):
    """Linear to `hidden` channels, GELU, and back."""

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(channels, hidden, rngs=rngs)
        self.fc2 = Linear(hidden, channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(gelu(self.fc1(x)))


class ConvFFN(nnx.Module):
    """Linear to `hidden` channels, a depthwise 5x5 beside a skip, and back."""

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(channels, hidden, rngs=rngs)
        self.dwconv = Conv2d(hidden, hidden, 5, groups=hidden, rngs=rngs)
        self.fc2 = Linear(hidden, channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        e = gelu(self.fc1(x))
        return self.fc2(e + gelu(self.dwconv(e)))


class GatedMLP(nnx.Module):
    """Linear to `hidden` channels; half of them gate the rest after a depthwise 5x5; and back."""

    def __init__(self, channels: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(channels, hidden, rngs=rngs)
        self.sg = Gate(hidden // 2, rngs=rngs)
        self.fc2 = Linear(hidden // 2, channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(self.sg(gelu(self.fc1(x))))


class Gate(nnx.Module):
    """Half of the channels times what the other half, normalised, looks like around."""

    def __init__(self, half: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(half)
        self.conv = Conv2d(half, half, 5, groups=half, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        value, gate = jnp.split(x, 2, -1)
        return value * self.conv(self.norm(gate))
