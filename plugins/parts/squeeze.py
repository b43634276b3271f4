"""Channels weighed by their means over the picture."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.network.layers import Conv2d, Linear, PReLU, Sequential
from esrjax.network.resampling import average_pool
from esrjax.network.words import softmax


class SqueezeExcitation(nnx.Module):
    """Each channel times a share that the means of all decide. Source: arXiv:1709.01507, Eq. 3."""

    def __init__(self, channels: int, reduction: int, *, rngs: nnx.Rngs):
        hidden = channels // reduction
        narrow = Linear(channels, hidden, bias=False, rngs=rngs)
        self.fc = Sequential([narrow, jax.nn.relu, Linear(hidden, channels, bias=False, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        return x * jax.nn.sigmoid(self.fc(average_pool(x)))


class SKFF(nnx.Module):
    """The mean of `maps` maps, weighed channel by channel by what the means of their sum say.

    Source: MIRNet (arXiv:2003.06792), section 3.1.
    """

    def __init__(self, channels: int, maps: int, *, rngs: nnx.Rngs):
        hidden = max(channels // 8, 4)
        self.conv_du = Sequential([Conv2d(channels, hidden, 1, bias=False, rngs=rngs), PReLU()])
        self.fcs = nnx.List(Conv2d(hidden, channels, 1, bias=False, rngs=rngs) for _ in range(maps))

    def __call__(self, *maps: Array) -> Array:
        stacked = jnp.stack(maps)
        z = self.conv_du(average_pool(stacked.sum(0)))
        shares = softmax(jnp.stack([fc(z) for fc in self.fcs]), 0)
        return (stacked * shares).sum(0)
