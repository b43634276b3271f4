"""Blocks of SPAN and its descendants: Conv3XC, SPAB and SPAN's parameter-free attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from esrjax.nn import ops
from esrjax.nn.layers import Conv2d, FusedBlock, Sequential, conv_operands
from esrjax.nn.masking import zero_pad
from esrjax.nn.reparam import Affine, Reparam

from .common import RGB_MEAN

TORCH_NAMES = {
    "conv_{i}.eval_conv.{leaf}": "conv_{i}.{leaf}",
    "block_{i}.c{j}_r.eval_conv.{leaf}": "block_{i}.c{j}.{leaf}",
    "block_{i}.c{j}_r": "block_{i}.c{j}",
}


def normalize_input(x: Array) -> Array:
    """Return `255 · (x − mean)` for `x (N, h, w, 3)` in [0, 1], the input of SPAN's
    convolutions.
    """
    mean = jnp.asarray(
        np.asarray(RGB_MEAN, np.float32), x.dtype
    )  # rounded to float32 first, as in the official code
    return 255 * (x - mean[None, None, None, :])


def parameter_free_attention(r: Array, u: Array) -> Array:
    """Return `(r + u) · (sigmoid(r) − ½)`, SPAN's parameter-free attention.

    `u` is the input of a block and `r` the output of its convolutions, both `(N, h, w, C)`. Source:
    SPAN (arXiv:2311.12770), Eq. 3 to 5, as in the released code.
    """
    return (r + u) * (jax.nn.sigmoid(r) - 0.5)


class Conv3XC(Reparam):
    """1x1 -> 3x3 -> 1x1 with `gain` times as many channels, plus a 1x1 skip; one 3x3 when deployed.

    Maps `(N, h, w, in_channels)` to `(N, h, w, out_channels)`. Source: SPAN (arXiv:2311.12770),
    section 3. The input is padded before the first 1x1, so the padded ring carries its bias and the
    reparameterization is exact at the border.
    """

    def __init__(self, in_channels: int, out_channels: int, *, gain: int = 2, rngs: nnx.Rngs):
        self.sk = Conv2d(in_channels, out_channels, 1, rngs=rngs)
        self.conv = Sequential(
            [
                Conv2d(in_channels, gain * in_channels, 1, rngs=rngs),
                Conv2d(gain * in_channels, gain * out_channels, 3, padding=0, rngs=rngs),
                Conv2d(gain * out_channels, out_channels, 1, rngs=rngs),
            ]
        )

    def __call__(self, x: Array) -> Array:
        return self.conv(zero_pad(x, 1)) + self.sk(x)

    def fuse(self) -> Conv2d:
        expand, conv3x3, reduce = map(Affine.from_conv, self.conv)
        return (expand.then(conv3x3).then(reduce) + Affine.from_conv(self.sk)).to_conv()


class SPAB(Reparam):
    """Swift parameter-free attention block: `u -> (parameter_free_attention(r, u), activated)`.

    All are `(N, h, w, C)`; `r` is the output of three convolutions with SiLUs between them,
    `activated` the first of the two activations. Source: SPAN (arXiv:2311.12770), section 3.
    """

    def __init__(self, channels: int, *, gain: int = 2, rngs: nnx.Rngs):
        self.c1 = Conv3XC(channels, channels, gain=gain, rngs=rngs)
        self.c2 = Conv3XC(channels, channels, gain=gain, rngs=rngs)
        self.c3 = Conv3XC(channels, channels, gain=gain, rngs=rngs)

    def __call__(self, u: Array) -> tuple[Array, Array]:
        activated = jax.nn.silu(self.c1(u))
        r = self.c3(jax.nn.silu(self.c2(activated)))
        return parameter_free_attention(r, u), activated

    def fuse(self) -> MergedSPAB:
        return MergedSPAB(self.c1.fuse(), self.c2.fuse(), self.c3.fuse())


class MergedSPAB(FusedBlock):
    """SPAB in deploy form: three 3x3 convolutions, which a kernel may compute as one operation."""

    op = staticmethod(ops.spab)

    def __init__(self, c1: Conv2d, c2: Conv2d, c3: Conv2d):
        self.c1, self.c2, self.c3 = c1, c2, c3

    def operands(self, u: Array) -> tuple[Array, ...]:
        return u, *conv_operands(self.c1, self.c2, self.c3)

    def forward(self, u: Array) -> tuple[Array, Array]:
        activated = jax.nn.silu(self.c1(u))
        r = self.c3(jax.nn.silu(self.c2(activated)))
        return parameter_free_attention(r, u), activated

    def fused(self, u: Array) -> tuple[Array, Array]:
        return super().fused(u), jax.nn.silu(self.c1(u))  # dead code unless somebody uses it
