"""Enhanced spatial attention: a gate from a coarse view of the picture."""

import jax
from flax import nnx
from jax import Array

from esrjax.network.layers import Conv2d
from esrjax.network.resampling import bilinear, max_pool


class ESA(nnx.Module):
    """`x (N, h, w, C)` gated by what `inner` channels see from afar; sides of at least 15 pixels.

    Source: RFANet (Liu et al., CVPR 2020), as RFDN (arXiv:2009.11551) made it lighter, with one
    convolution after the pool.
    """

    def __init__(self, wide: int, inner: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv2d(wide, inner, 1, rngs=rngs)
        self.conv_f = Conv2d(inner, inner, 1, rngs=rngs)
        self.conv2 = Conv2d(inner, inner, padding=0, stride=2, rngs=rngs)
        self.conv3 = Conv2d(inner, inner, rngs=rngs)
        self.conv4 = Conv2d(inner, wide, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        narrow = self.conv1(x)
        coarse = self.conv3(max_pool(self.conv2(narrow), 7, 3))
        gate = bilinear(coarse, size=(h, w)) + self.conv_f(narrow)
        return x * jax.nn.sigmoid(self.conv4(gate))
