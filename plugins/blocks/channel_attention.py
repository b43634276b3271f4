"""Channel attention: weights of channels computed from global average pooling."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.nn.functional import gelu, global_avg_pool, softmax
from esrjax.nn.layers import Conv2d, Linear, PReLU, Sequential


class SqueezeExcitation(nnx.Module):
    """Scale each channel of `x (N, h, w, C)` by a sigmoid of all channel means.

    Source: Squeeze-and-Excitation (arXiv:1709.01507), Eq. 3.
    """

    def __init__(self, channels: int, reduction: int, *, rngs: nnx.Rngs):
        hidden = channels // reduction
        squeeze = Linear(channels, hidden, bias=False, rngs=rngs)
        self.fc = Sequential(
            [squeeze, jax.nn.relu, Linear(hidden, channels, bias=False, rngs=rngs)]
        )

    def __call__(self, x: Array) -> Array:
        return x * jax.nn.sigmoid(self.fc(global_avg_pool(x)))


class ChannelAttention(nnx.Module):
    """Scale each channel by a sigmoid of all channel means: `(N, h, w, C)` to the same shape.

    The hidden 1x1 convolution has `C / squeeze_factor` channels.
    """

    def __init__(self, channels: int, squeeze_factor: int, *, rngs: nnx.Rngs):
        down = Conv2d(channels, channels // squeeze_factor, 1, rngs=rngs)
        up = Conv2d(channels // squeeze_factor, channels, 1, rngs=rngs)
        self.attention = Sequential([global_avg_pool, down, jax.nn.relu, up, jax.nn.sigmoid])

    def __call__(self, x: Array) -> Array:
        return x * self.attention(x)


class CAB(nnx.Module):
    """Channel attention block: a bottleneck of two 3x3 convolutions, then channel attention.

    Maps `(N, h, w, C)` to the same shape; the bottleneck has `C / compress_ratio` channels.
    """

    def __init__(self, channels: int, compress_ratio: int, squeeze_factor: int, *, rngs: nnx.Rngs):
        down = Conv2d(channels, channels // compress_ratio, rngs=rngs)
        up = Conv2d(channels // compress_ratio, channels, rngs=rngs)
        self.cab = Sequential(
            [down, gelu, up, ChannelAttention(channels, squeeze_factor, rngs=rngs)]
        )

    def __call__(self, x: Array) -> Array:
        return self.cab(x)


class SKFF(nnx.Module):
    """Selective kernel feature fusion: a per-channel softmax-weighted sum of feature maps.

    Called with `height` maps `(N, h, w, C)`, returns one. The weights depend on the channel means
    of the sum. Source: MIRNet (arXiv:2003.06792), section 3.1; `height` is the released code's
    word.
    """

    def __init__(self, channels: int, height: int, *, rngs: nnx.Rngs):
        hidden = max(channels // 8, 4)
        self.conv_du = Sequential([Conv2d(channels, hidden, 1, bias=False, rngs=rngs), PReLU()])
        self.fcs = nnx.List(
            Conv2d(hidden, channels, 1, bias=False, rngs=rngs) for _ in range(height)
        )

    def __call__(self, *features: Array) -> Array:
        stacked = jnp.stack(features)
        z = self.conv_du(global_avg_pool(stacked.sum(0)))
        attn = softmax(jnp.stack([fc(z) for fc in self.fcs]), 0)
        return (stacked * attn).sum(0)
