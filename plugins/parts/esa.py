"""Enhanced spatial attention (ESA)."""

import jax
from flax import nnx
from jax import Array

from esrjax.nn.functional import max_pool, resize_bilinear
from esrjax.nn.layers import Conv2d


class ESA(nnx.Module):
    """Gate `x (N, h, w, C)` by a mask computed at a coarse resolution; needs `h, w >= 15`.

    Source: RFANet (Liu et al., CVPR 2020), in the lighter form of RFDN (arXiv:2009.11551) with one
    convolution after the pooling.

    Args:
        channels: `C`.
        esa_channels: Channels of the coarse branch.
    """

    def __init__(self, channels: int, esa_channels: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv2d(channels, esa_channels, 1, rngs=rngs)
        self.conv_f = Conv2d(esa_channels, esa_channels, 1, rngs=rngs)
        self.conv2 = Conv2d(esa_channels, esa_channels, padding=0, stride=2, rngs=rngs)
        self.conv3 = Conv2d(esa_channels, esa_channels, rngs=rngs)
        self.conv4 = Conv2d(esa_channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        c1 = self.conv1(x)
        c3 = self.conv3(max_pool(self.conv2(c1), 7, 3))
        gate = resize_bilinear(c3, size=(h, w)) + self.conv_f(c1)
        return x * jax.nn.sigmoid(self.conv4(gate))
