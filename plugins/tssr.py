"""TSSR: team 58 of the 2025 challenge; DISP's network and weights are the same.

Four residual blocks of four 3x3 convolutions, each followed by a SiLU, and a residual around all
blocks. There is no attention.

    x ─ conv_1 ─┬─ blocks.0 … blocks.3 ─ conv_2 (1x1) ─ + ─ upsampler ─ shuffle
                └───────────────────────────────────────┘

Report and code differ: the 2026 report only mentions TSSR's name. The third convolution of a block
comes first in the checkpoint, under a different name. The train form is unspecified: SPAN's
multi-branch convolutions are used where a tensor has their names.

Training recipe: unspecified.
"""

import jax
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d, Sequential

from .blocks.common import ntire2025_url
from .blocks.spab import Conv3XC

TORCH_NAMES = {
    "conv_1.eval_conv.{leaf}": "conv_1.{leaf}",
    "blocks.{i}._extern_conv_block.0.eval_conv.{leaf}": "blocks.{i}.c3.{leaf}",
    "blocks.{i}.c3_r.eval_conv.{leaf}": "blocks.{i}.c4.{leaf}",
    "blocks.{i}.c{j}_r.eval_conv.{leaf}": "blocks.{i}.c{j}.{leaf}",
}


class TSSRBlock(nnx.Module):
    """`u -> u + f`, `f` the output of four convolutions, each followed by a SiLU.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.c1, self.c2, self.c3, self.c4 = (
            Conv3XC(channels, channels, rngs=rngs) for _ in range(4)
        )

    def __call__(self, u: Array) -> Array:
        f = u
        for conv in (self.c1, self.c2, self.c3, self.c4):
            f = jax.nn.silu(conv(f))
        return u + f


class TSSR(nnx.Module):
    """TSSR: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        scale: Upscaling factor.
    """

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 32, scale: int = 4):
        self.scale = scale
        self.conv_1 = Conv3XC(3, channels, rngs=rngs)
        self.blocks = Sequential([TSSRBlock(channels, rngs=rngs) for _ in range(4)])
        self.conv_2 = Conv2d(channels, channels, 1, rngs=rngs)
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        shallow = self.conv_1(x)
        return pixel_shuffle(
            self.upsampler(self.conv_2(self.blocks(shallow)) + shallow), self.scale
        )


METHOD = Method(
    network=TSSR,
    team="TSSR",
    paper="NTIRE 2025 Efficient Super-Resolution challenge, team 58",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2025": Weights(
            sha256="8603e89aee24ef28f8df21e4b18f72b6cc301bd4afc5d3d1de03583ba4a95622",
            tensors_sha256="284799378aab0d56abfe7518aaab39149ecef4a5f3201634171db970ccc98a5c",
            url=ntire2025_url("team58_TSSR.pth"),
        )
    },
    torch_names=TORCH_NAMES,
    reported={
        "params": 163_792,
        "macs": 10_693_378_048,
        "activations": 40_894_464,
        "convs": 19,
    },
)
