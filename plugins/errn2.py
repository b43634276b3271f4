"""ERRN2: SPAN's attention around four convolutions, by team Just Try.

Six blocks of four 3x3 convolutions with 32 channels, leaky ReLUs between them and SPAN's
parameter-free attention at the end, and a residual around all blocks. Trained with wide
multi-branch convolutions that are merged into single ones for deployment.

    x ─ conv_1 ─┬─ block_1 … block_6 ─ conv_2 ─ + ─ upsampler ─ shuffle
                └───────────────────────────────┘

Report and code differ: the slope of the activation (0.1), the tail and the upsampler are only in
the code. The attention makes the network unbounded on inputs unlike photographs: for noise the
output can exceed the data range by a factor of hundreds. The train form is an interpretation of "an
ERB and a multi-branch reparameterize block": the residual block of FMEN (Du et al. 2022), to which
the names in the checkpoint point, plus 3x3, 1x1, 1x3 and 3x1 branches. That they are summed, the
choice of branches and the expansion to twice the channels are ours.

Training recipe of the report: repeated runs of 1000k steps: five with L1 on LR patches of 64, three
on 128, then three with L2 on 128 and two on 160; Adam (0.9, 0.99), cosine of period 250k from 2e-4
(L2: 1e-4) to 1e-7, batch size 16, DIV2K + LSDIR + Flickr2K. Unspecified: whether a run continues
from the one before, augmentation.
"""

import functools
import operator

import jax
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d, Sequential
from esrjax.nn.masking import zero_pad
from esrjax.nn.reparam import Affine, Reparam

from .blocks.common import ntire2026_url
from .blocks.spab import parameter_free_attention


class ERB(Reparam):
    """Enhanced residual block: 1x1 -> 3x3 -> 1x1 with `gain` times as many channels.

    Residuals are around the 3x3 and around all. Maps `(N, h, w, C)` to the same shape; deploys to
    one 3x3. Source: FMEN (arXiv:2204.08397), there RRRB. The input is padded before the first 1x1,
    so the padded ring carries its bias and the reparameterization is exact at the border.
    """

    def __init__(self, channels: int, *, gain: int = 2, rngs: nnx.Rngs):
        self.expand = Conv2d(channels, gain * channels, 1, rngs=rngs)
        self.mix = Conv2d(gain * channels, gain * channels, padding=0, rngs=rngs)
        self.reduce = Conv2d(gain * channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        expanded = self.expand(zero_pad(x, 1))
        return self.reduce(self.mix(expanded) + expanded[:, 1:-1, 1:-1]) + x

    def fuse(self) -> Conv2d:
        expand, conv3x3, reduce = map(Affine.from_conv, (self.expand, self.mix, self.reduce))
        conv3x3 += Affine.identity(conv3x3.b.size, conv3x3.b.dtype)
        return (
            expand.then(conv3x3).then(reduce) + Affine.identity(reduce.b.size, conv3x3.b.dtype)
        ).to_conv()


class RepConv(Reparam):
    """Sum of an ERB and four convolutions of different shapes; one 3x3 when deployed.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, gain: int = 2, rngs: nnx.Rngs):
        self.erb = ERB(channels, gain=gain, rngs=rngs)
        self.mbrb = nnx.List(
            [
                Conv2d(channels, channels, kernel_size, rngs=rngs)
                for kernel_size in (3, 1, (1, 3), (3, 1))
            ]
        )

    def __call__(self, x: Array) -> Array:
        return functools.reduce(operator.add, (branch(x) for branch in self.mbrb), self.erb(x))

    def fuse(self) -> Conv2d:
        branches = (Affine.from_conv(branch) for branch in self.mbrb)
        return functools.reduce(operator.add, branches, Affine.from_conv(self.erb.fuse())).to_conv()


class RepB(nnx.Module):
    """`u -> parameter_free_attention(r, u)` with `r` the output of four convolutions.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, gain: int, rngs: nnx.Rngs):
        self.rep1, self.rep2, self.rep3, self.rep4 = (
            RepConv(channels, gain=gain, rngs=rngs) for _ in range(4)
        )

    def __call__(self, u: Array) -> Array:
        r = self.rep1(u)
        for conv in (self.rep2, self.rep3, self.rep4):
            r = conv(jax.nn.leaky_relu(r, 0.1))
        return parameter_free_attention(r, u)


class ERRN2(nnx.Module):
    """ERRN2: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        gain: Expansion of the channels within an ERB in the train form.
        scale: Upscaling factor.
    """

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
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="f167f80e8e5bbed8b99056235a646da25d7292b085c09efdda1454be5a4659a6",
            tensors_sha256="c2244f6b8c8a0b2ed0f758dbf6936f9c1536b976936b328521d7b63beb95e04f",
            url=ntire2026_url("team20_ERRN2.pth"),
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
