"""SPANF: second of the 2025 challenge, by XiaomiMM; PDS and PKDSR are pruned from it.

SPAN's blocks with 32 channels, without SPAN's head and tail convolutions: the first block maps the
image to features. A near-pixel branch passes the image to the fusion by a grouped convolution that
starts as nearest-neighbour upsampling, so that the rest learns the residual.

    x ─┬─ block_1 (3 -> 32) ─┬─ block_2 … block_5 ─┐
       │                     └─────────────────────┤ concat ─ conv_cat ─ conv_2 ─ shuffle
       └─ conv_near ───────────────────────────────┘

Report and code differ: the 2026 report only mentions SPANF's name. Block 1 has neither residual nor
attention, as its input and output channels differ. The near branch is trainable, but in the
released weights it is still exactly nearest-neighbour upsampling. The train form is unspecified:
the names of the tensors are those of SPAN's multi-branch convolutions, so these are used.

Training recipe: unspecified, except a learning rate of 5e-4 that PKDSR's text implies.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d

from .blocks.common import nearest_upsample_init, ntire2025_url
from .blocks.spab import SPAB, TORCH_NAMES, Conv3XC


class Conv3XCStem(nnx.Module):
    """Three Conv3XC from RGB to features, with SiLUs between them.

    Maps `(N, h, w, in_channels)` to `(N, h, w, out_channels)`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        self.c1 = Conv3XC(in_channels, out_channels, rngs=rngs)
        self.c2 = Conv3XC(out_channels, out_channels, rngs=rngs)
        self.c3 = Conv3XC(out_channels, out_channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.c3(jax.nn.silu(self.c2(jax.nn.silu(self.c1(x)))))


class SPANF(nnx.Module):
    """SPANF: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        tail_channels: Channels between the fusion (`conv_cat`) and the last convolution.
        scale: Upscaling factor.
    """

    def __init__(
        self, *, rngs: nnx.Rngs, channels: int = 32, tail_channels: int = 32, scale: int = 4
    ):
        self.scale = scale
        out_channels = 3 * scale**2
        self.conv_near = nearest_upsample_init(
            Conv2d(3, out_channels, groups=3, bias=False, rngs=rngs)
        )
        self.block_1 = Conv3XCStem(3, channels, rngs=rngs)
        self.block_2, self.block_3, self.block_4, self.block_5 = (
            SPAB(channels, rngs=rngs) for _ in range(4)
        )
        self.conv_cat = Conv2d(out_channels + 2 * channels, tail_channels, 1, rngs=rngs)
        self.conv_2 = Conv3XC(tail_channels, out_channels, rngs=rngs)

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
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2025": Weights(
            sha256="1508c566008654646bea1edff537c83dd7a6fe8f6ffda3f25f9eb7ba09cbbcd3",
            tensors_sha256="2a0ea5db249109acf2ba3f929833d7a3e252a06963e17d939c003076911b2bf5",
            url=ntire2025_url("team24_spanf.pth"),
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
