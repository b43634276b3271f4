"""SPANV2: the winner of the 2026 challenge, by XiaomiMM.

SPAN's blocks with a learned gate: the sum of a block's input and its convolutions' output is
multiplied by the gate, a 1x1 convolution of that output, in one pass over memory. A near-pixel
branch passes the image to the output by its own grouped convolution, which starts as
nearest-neighbour upsampling, so that the rest learns the residual.

    x ─┬─ block_1 (3 -> 32) ─ block_2 … block_5 ─┐
       └─ conv_near ─────────────────────────────┴ concat ─ depthwise ─ pointwise ─ shuffle

Report and code differ: block 1 has neither gate nor residual and ends in a ReLU; all convolutions
but the gates have no bias; the near branch is not free (28.3 MMAC for 256x256 LR). The organisers'
raw file gives 1.59 GMAC and 18 convolutions, because their tracer could not see into the fused
operator; the 9.11 GMAC in the report's table is right.

Initialization: the near branch as in the report. The rest is unspecified; here the fusion passes
the near branch on and every gate starts at 1, so the output of a freshly initialized network is
close to nearest-neighbour upsampling and its blocks are residual sums. 400 steps of training then
give an RGB PSNR of 27.6 dB on Set5, where PyTorch's defaults give 21.1 dB (docs/log.md). Training
recipe: configs/spanv2.toml.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn import ops
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d, FusedBlock, conv_operands

from .blocks.common import identity_init, nearest_upsample_init, ntire2026_url


class StemBlock(nnx.Module):
    """Three 3x3 convolutions from RGB to features, each followed by a ReLU.

    Maps `(N, h, w, in_channels)` to `(N, h, w, out_channels)`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.c1 = Conv2d(in_channels, out_channels, bias=False, rngs=rngs)
        self.c2 = Conv2d(out_channels, out_channels, bias=False, rngs=rngs)
        self.c3 = Conv2d(out_channels, out_channels, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        for conv in (self.c1, self.c2, self.c3):
            x = jax.nn.relu(conv(x))
        return x


class GatedSPAB(FusedBlock):
    """`u -> (u + f) · (G f + b)`, `f` the output of three convolutions (report, Eq. 3 to 7).

    `G f + b`, the gate, is a 1x1 convolution. Maps `(N, h, w, C)` to the same shape.
    """

    op = staticmethod(ops.gated_spab)

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.c1 = Conv2d(channels, channels, bias=False, rngs=rngs)
        self.c2 = Conv2d(channels, channels, bias=False, rngs=rngs)
        self.c3 = Conv2d(channels, channels, bias=False, rngs=rngs)
        self.guidance_map_conv = Conv2d(channels, channels, 1, rngs=rngs)
        self.guidance_map_conv.bias[...] = jnp.ones(channels)

    def operands(self, u: Array) -> tuple[Array, ...]:
        return u, *conv_operands(self.c1, self.c2, self.c3, self.guidance_map_conv)

    def forward(self, u: Array) -> Array:
        f, gate = self.c3(jax.nn.relu(self.c2(jax.nn.relu(self.c1(u))))), self.guidance_map_conv
        if gate.rounds_input:
            return (u + f) * gate(f)
        return ops.gated_residual(u, f, gate.effective_weight(), gate.bias[...])


class SPANV2(nnx.Module):
    """SPANV2: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        scale: Upscaling factor.
    """

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 32, scale: int = 4):
        self.scale = scale
        out_channels = 3 * scale**2
        self.conv_near = nearest_upsample_init(
            Conv2d(3, out_channels, groups=3, bias=False, rngs=rngs)
        )
        self.block_1 = StemBlock(3, channels, rngs=rngs)
        self.block_2, self.block_3, self.block_4, self.block_5 = (
            GatedSPAB(channels, rngs=rngs) for _ in range(4)
        )
        concat_channels = out_channels + channels
        self.depthwise_conv = nearest_upsample_init(
            Conv2d(concat_channels, concat_channels, groups=concat_channels, bias=False, rngs=rngs)
        )
        self.pointwise_conv = identity_init(
            Conv2d(concat_channels, out_channels, 1, bias=False, rngs=rngs)
        )

    def __call__(self, x: Array) -> Array:
        u = self.block_1(x)
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            u = block(u)
        concat = jnp.concatenate([self.conv_near(x), u], -1)
        return pixel_shuffle(self.pointwise_conv(self.depthwise_conv(concat)), self.scale)


METHOD = Method(
    network=SPANV2,
    team="XiaomiMM",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.1",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="fca2743272b8a7fb32931ed3287454173c7d209f204cb2f58084ee868414d371",
            tensors_sha256="55de3f8b92630629d19407a1cfdf7286a79893b9f5342e4af58b87a25585659b",
            url=ntire2026_url("team22_spanv2_c2.pth"),
        )
    },
    pretrained="esrjax_plugins.pretrained:spanv2.safetensors",
    torch_names={"block_{i}.c{j}.conv": "block_{i}.c{j}"},
    reported={
        "params": 139_104,
        "macs": 9_107_931_136,
        "activations": 51_380_224,
        "convs": 22,
        "psnr_valid": 26.92,
        "psnr_test": 27.00,
        "runtime_ms": 5.256,
    },
)
