"""The blocks of SPAN and its descendants."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from esrjax.network import canvas, ops
from esrjax.network.canvas import zero_pad
from esrjax.network.layers import Conv2d, Sequential
from esrjax.network.reparam import Affine, Reparam

from .colour import MEAN

TORCH_NAMES = {
    "conv_{i}.eval_conv.{leaf}": "conv_{i}.{leaf}",
    "block_{i}.c{j}_r.eval_conv.{leaf}": "block_{i}.c{j}.{leaf}",
    "block_{i}.c{j}_r.conv.{k}.{leaf}": "block_{i}.c{j}.conv.{k}.{leaf}",
    "block_{i}.c{j}_r.{branch}.{leaf}": "block_{i}.c{j}.{branch}.{leaf}",
    "block_{i}.c{j}_r": "block_{i}.c{j}",
}


def centred(x: Array) -> Array:
    """`x (N, h, w, 3)` in bytes, with the mean colour at zero."""
    mean = jnp.asarray(np.asarray(MEAN, np.float32), x.dtype)  # its constants are float32
    return 255 * (x - mean[None, None, None, :])


def attention(r: Array, u: Array) -> Array:
    """`(r + u)·(sigmoid(r) − ½)`: what was found, squashed to (−½, ½), gates the residual sum.

    Source: SPAN (arXiv:2311.12770), Eq. 3 to 5, as the released code has them.
    """
    return (r + u) * (jax.nn.sigmoid(r) - 0.5)


class Conv3XC(Reparam):
    """1x1 -> 3x3 -> 1x1 at `gain` times the width, beside a 1x1 skip; one 3x3 when deployed.

    Source: SPAN (arXiv:2311.12770), section 3. The input is padded before the first factor, so
    the padding carries its bias and the fusion is exact at the border.
    """

    def __init__(self, wide: int, out: int, *, gain: int = 2, rngs: nnx.Rngs):
        self.sk = Conv2d(wide, out, 1, rngs=rngs)
        self.conv = Sequential(
            [
                Conv2d(wide, gain * wide, 1, rngs=rngs),
                Conv2d(gain * wide, gain * out, 3, padding=0, rngs=rngs),
                Conv2d(gain * out, out, 1, rngs=rngs),
            ]
        )

    def __call__(self, x: Array) -> Array:
        return self.conv(zero_pad(x, 1)) + self.sk(x)

    def fuse(self) -> Conv2d:
        widen, mix, narrow = map(Affine.of, self.conv)
        return (widen.then(mix).then(narrow) + Affine.of(self.sk)).conv()


class SPAB(Reparam):
    """`u -> (attention(r, u), a)`: `a` the first activation, `r` three convolutions deep."""

    def __init__(self, channels: int, *, gain: int = 2, rngs: nnx.Rngs):
        self.c1 = Conv3XC(channels, channels, gain=gain, rngs=rngs)
        self.c2 = Conv3XC(channels, channels, gain=gain, rngs=rngs)
        self.c3 = Conv3XC(channels, channels, gain=gain, rngs=rngs)

    def __call__(self, u: Array) -> tuple[Array, Array]:
        activated = jax.nn.silu(self.c1(u))
        r = self.c3(jax.nn.silu(self.c2(activated)))
        return attention(r, u), activated

    def fuse(self) -> MergedSPAB:
        return MergedSPAB(self.c1.fuse(), self.c2.fuse(), self.c3.fuse())


class MergedSPAB(nnx.Module):
    """A SPAB of single convolutions, which is one operation."""

    def __init__(self, c1: Conv2d, c2: Conv2d, c3: Conv2d):
        self.c1, self.c2, self.c3 = c1, c2, c3

    def __call__(self, u: Array) -> tuple[Array, Array]:
        activated = jax.nn.silu(self.c1(u))  # where a kernel runs and nobody asks for it, dead code

        def parts() -> Array:
            return attention(self.c3(jax.nn.silu(self.c2(activated))), u)

        return ops.whole(ops.spab, (u, *numbers(self.c1, self.c2, self.c3)), parts), activated


def numbers(*convs: Conv2d) -> tuple[Array, ...]:
    """What an operation of whole blocks is told of their convolutions, and of pixels that exist."""
    held = [(conv.kernel(), conv.bias) for conv in convs]
    found = [each for w, b in held for each in ([w] if b is None else [w, b[...]])]
    mask = canvas.mask()
    return (*found, *([] if mask is None else [mask]))
