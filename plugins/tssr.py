"""TSSR: team 58 of the 2025 challenge; DISP's network and weights are the same.

Four residual blocks of four 3x3 convolutions, each with its SiLU, and a residual around them all.
There is no attention.

    x ─ conv_1 ─┬─ blocks.0 … blocks.3 ─ conv_2 (1x1) ─ + ─ upsampler ─ shuffle
                └───────────────────────────────────────┘

Report and code differ: of TSSR the 2026 report says nothing but its name. The third convolution of
a block stands first in the checkpoint, under a name of its own.
The train form is unsaid: the names of the tensors are those of SPAN's multi-branch convolutions,
so these are used where a tensor is so named.
Recipe: unsaid.
"""

import jax
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, Sequential
from esrjax.network.words import pixel_shuffle

from .parts.sources import esr2025
from .parts.spab import Conv3XC

TORCH_NAMES = {
    "conv_1.eval_conv.{leaf}": "conv_1.{leaf}",
    "blocks.{i}._extern_conv_block.0.eval_conv.{leaf}": "blocks.{i}.c3.{leaf}",
    "blocks.{i}.c3_r.eval_conv.{leaf}": "blocks.{i}.c4.{leaf}",
    "blocks.{i}.c{j}_r.eval_conv.{leaf}": "blocks.{i}.c{j}.{leaf}",
}


class Block(nnx.Module):
    """`u -> u + f`, with `f` four convolutions deep, a SiLU after each."""

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
    """TSSR of `channels` features, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 32, scale: int = 4):
        self.scale = scale
        self.conv_1 = Conv3XC(3, channels, rngs=rngs)
        self.blocks = Sequential([Block(channels, rngs=rngs) for _ in range(4)])
        self.conv_2 = Conv2d(channels, channels, 1, rngs=rngs)
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        head = self.conv_1(x)
        return pixel_shuffle(self.upsampler(self.conv_2(self.blocks(head)) + head), self.scale)


METHOD = Method(
    network=TSSR,
    team="TSSR",
    paper="NTIRE 2025 Efficient Super-Resolution challenge, team 58",
    license="MIT",
    card=__doc__,
    weights={
        "ntire2025": Weights(
            sha256="8603e89aee24ef28f8df21e4b18f72b6cc301bd4afc5d3d1de03583ba4a95622",
            url=esr2025("team58_TSSR.pth"),
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
