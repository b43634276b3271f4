"""SPANF: second of the 2025 challenge, by XiaomiMM; PDS and PKDSR are pruned from it.

SPAN's blocks, 32 wide, without SPAN's head and tail convolutions: the first block widens the
picture itself. A near-pixel branch carries the picture to the fusion by a grouped convolution
that starts as nearest-neighbour upsampling, so that the rest learns detail alone.

    x ─┬─ block_1 (3 -> 32) ─┬─ block_2 … block_5 ─┐
       │                     └─────────────────────┤ concat ─ conv_cat ─ conv_2 ─ shuffle
       └─ conv_near ───────────────────────────────┘

Report and code differ: of SPANF the 2026 report says nothing but its name. Block 1 has neither
residual nor attention, as its widths differ; the near branch is trainable, but in the released
weights it is still nearest-neighbour upsampling, bit for bit.
The train form is unsaid: the names of the tensors are those of SPAN's multi-branch convolutions,
so these are used.
Recipe: unsaid, but for a rate of 5e-4, which PKDSR's text implies.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d
from esrjax.network.words import pixel_shuffle

from .parts.near import nearest
from .parts.sources import esr2025
from .parts.spab import SPAB, TORCH_NAMES, Conv3XC


class Entry(nnx.Module):
    """Three convolutions from RGB to features, with a SiLU between each two."""

    def __init__(self, wide: int, out: int, *, rngs: nnx.Rngs):
        self.c1 = Conv3XC(wide, out, rngs=rngs)
        self.c2 = Conv3XC(out, out, rngs=rngs)
        self.c3 = Conv3XC(out, out, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.c3(jax.nn.silu(self.c2(jax.nn.silu(self.c1(x)))))


class SPANF(nnx.Module):
    """SPANF of `channels` features, `tail` of them behind the fusion, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 32, tail: int = 32, scale: int = 4):
        self.scale = scale
        colours = 3 * scale**2
        self.conv_near = nearest(Conv2d(3, colours, groups=3, bias=False, rngs=rngs))
        self.block_1 = Entry(3, channels, rngs=rngs)
        self.block_2, self.block_3, self.block_4, self.block_5 = (
            SPAB(channels, rngs=rngs) for _ in range(4)
        )
        self.conv_cat = Conv2d(colours + 2 * channels, tail, 1, rngs=rngs)
        self.conv_2 = Conv3XC(tail, colours, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        features = first = self.block_1(x)
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            features, _ = block(features)
        features = jnp.concatenate([self.conv_near(x), features, first], -1)
        return pixel_shuffle(self.conv_2(self.conv_cat(features)), self.scale)


METHOD = Method(
    network=SPANF,
    team="XiaomiMM",
    paper="NTIRE 2025 Efficient Super-Resolution challenge, team 24",
    license="MIT",
    card=__doc__,
    weights={
        "ntire2025": Weights(
            sha256="1508c566008654646bea1edff537c83dd7a6fe8f6ffda3f25f9eb7ba09cbbcd3",
            url=esr2025("team24_spanf.pth"),
        )
    },
    torch_names=TORCH_NAMES,
    reported={
        "params": 148_288,
        "macs": 9_681_502_208,
        "activations": 39_845_888,
        "convs": 18,
    },
)
