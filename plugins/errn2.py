"""ERRN2: SPAN's attention around four convolutions, by Just Try.

Six blocks of four 3x3 convolutions, 32 wide, with leaky ReLUs between them and SPAN's attention at
the end, and a residual around them all. Trained with wide multi-branch convolutions that become
single ones when deployed.

    x ─ conv_1 ─┬─ block_1 … block_6 ─ conv_2 ─ + ─ upsampler ─ shuffle
                └───────────────────────────────┘

Report and code differ: activation (slope 0.1), tail and upsampler are in the code alone. The
attention makes the network unbounded far from photographs: noise can give hundreds of white.
The train form is a reading of "an ERB and a multi-branch reparameterize block": the residual block
of FMEN (Du et al. 2022), to which the names in the checkpoint point, beside 3x3, 1x1, 1x3 and 3x1
branches. That they are summed, those branches and the width of twice the channels are our choice.
Recipe: repeats of 1000k steps: five with L1 on LR patches of 64, three on 128, then three with L2
on 128 and two on 160; Adam (0.9, 0.99), cosine of period 250k from 2e-4 (L2: 1e-4) to 1e-7, batch
16, DIV2K + LSDIR + Flickr2K. Unsaid: whether a repeat goes on from the last, augmentation.
"""

import functools
import operator

import jax
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.canvas import zero_pad
from esrjax.network.layers import Conv2d, Sequential
from esrjax.network.reparam import Affine, Reparam
from esrjax.network.words import pixel_shuffle

from .parts.sources import esr2026
from .parts.spab import attention


class ERB(Reparam):
    """1x1 -> 3x3 -> 1x1 at `gain` times the width, with residuals around the middle and around all.

    Source: FMEN (arXiv:2204.08397), there RRRB. The input is padded before the first factor, so
    the ring carries its bias and the fusion is exact at the border.
    """

    def __init__(self, channels: int, *, gain: int = 2, rngs: nnx.Rngs):
        self.expand = Conv2d(channels, gain * channels, 1, rngs=rngs)
        self.mix = Conv2d(gain * channels, gain * channels, padding=0, rngs=rngs)
        self.reduce = Conv2d(gain * channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        wide = self.expand(zero_pad(x, 1))
        return self.reduce(self.mix(wide) + wide[:, 1:-1, 1:-1]) + x

    def fuse(self) -> Conv2d:
        expand, mix, reduce = map(Affine.of, (self.expand, self.mix, self.reduce))
        mix += Affine.identity(mix.b.size, mix.b.dtype)
        return (expand.then(mix).then(reduce) + Affine.identity(reduce.b.size, mix.b.dtype)).conv()


class RepConv(Reparam):
    """An ERB beside four convolutions of different shapes; one 3x3 when deployed."""

    def __init__(self, channels: int, *, gain: int = 2, rngs: nnx.Rngs):
        self.erb = ERB(channels, gain=gain, rngs=rngs)
        self.mbrb = nnx.List(
            [Conv2d(channels, channels, kernel, rngs=rngs) for kernel in (3, 1, (1, 3), (3, 1))]
        )

    def __call__(self, x: Array) -> Array:
        return functools.reduce(operator.add, (branch(x) for branch in self.mbrb), self.erb(x))

    def fuse(self) -> Conv2d:
        branches = (Affine.of(branch) for branch in self.mbrb)
        return functools.reduce(operator.add, branches, Affine.of(self.erb.fuse())).conv()


class RepB(nnx.Module):
    """`u -> attention(r, u)`, with `r` four convolutions deep."""

    def __init__(self, channels: int, *, gain: int, rngs: nnx.Rngs):
        self.rep1, self.rep2, self.rep3, self.rep4 = (
            RepConv(channels, gain=gain, rngs=rngs) for _ in range(4)
        )

    def __call__(self, u: Array) -> Array:
        r = self.rep1(u)
        for conv in (self.rep2, self.rep3, self.rep4):
            r = conv(jax.nn.leaky_relu(r, 0.1))
        return attention(r, u)


class ERRN2(nnx.Module):
    """ERRN2 of `channels` features, `gain` times as many in training, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 32, gain: int = 2, scale: int = 4):
        self.scale = scale
        self.conv_1 = Conv2d(3, channels, rngs=rngs)
        self.block_1, self.block_2, self.block_3, self.block_4, self.block_5, self.block_6 = (
            RepB(channels, gain=gain, rngs=rngs) for _ in range(6)
        )
        self.conv_2 = Conv2d(channels, channels, rngs=rngs)
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        head = self.conv_1(x)
        features = self.block_3(self.block_2(self.block_1(head)))
        features = self.block_6(self.block_5(self.block_4(features)))
        return pixel_shuffle(self.upsampler(self.conv_2(features) + head), self.scale)


METHOD = Method(
    network=ERRN2,
    team="Just Try",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.14",
    license="MIT",
    card=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="f167f80e8e5bbed8b99056235a646da25d7292b085c09efdda1454be5a4659a6",
            url=esr2026("team20_ERRN2.pth"),
        )
    },
    torch_names={"block_{i}.rep{j}.rep_conv.{leaf}": "block_{i}.rep{j}.{leaf}"},
    reported={
        "params": 245_968,
        "macs": 16_062_087_168,
        "activations": 57_671_680,
        "convs": 27,
        "psnr_valid": 26.90,
        "psnr_test": 27.01,
        "runtime_ms": 9.388,
    },
)
