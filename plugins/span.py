"""SPAN: the baseline of the challenge, with 28 channels.

Six blocks of three 3x3 convolutions with a parameter-free attention: the output of the
convolutions, squashed to (−½, ½), gates the sum of itself and the block's input. Trained with wide
multi-branch convolutions that are merged into single ones for deployment.

    255·(x − mean) ─ conv_1 ─ block_1 … block_6 ─ conv_2 ─┐
                        │        │         └── activated ─┤ concat ─ conv_cat ─ upsampler ─ shuffle
                        └────────┴────────────────────────┘

Report and code differ: the report calls the attention a product with non-negative weights; the
code, and the weights, use (r + u)·(sigmoid(r) − ½). The mean is subtracted but not added back: the
network learns the offset. The code names the fourth tensor of the concatenation a feature before
activation, but an in-place SiLU has already changed it.

Training recipe: unspecified; the organisers provide trained weights.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d, Sequential

from .blocks.common import ntire2026_url
from .blocks.spab import SPAB, TORCH_NAMES, Conv3XC, normalize_input


class SPAN(nnx.Module):
    """SPAN: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        scale: Upscaling factor.
    """

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 28, scale: int = 4):
        self.scale = scale
        self.conv_1 = Conv3XC(3, channels, rngs=rngs)
        self.block_1, self.block_2, self.block_3, self.block_4, self.block_5, self.block_6 = (
            SPAB(channels, rngs=rngs) for _ in range(6)
        )
        self.conv_cat = Conv2d(4 * channels, channels, 1, rngs=rngs)
        self.conv_2 = Conv3XC(channels, channels, rngs=rngs)
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        shallow = self.conv_1(normalize_input(x))
        first, _ = self.block_1(shallow)
        features = first
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            features, _ = block(features)
        features, activated = self.block_6(features)
        features = jnp.concatenate([shallow, self.conv_2(features), first, activated], -1)
        return pixel_shuffle(self.upsampler(self.conv_cat(features)), self.scale)


METHOD = Method(
    network=SPAN,
    team="EfficientSR Organizers",
    paper="https://arxiv.org/abs/2311.12770",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="6c80f05048313289c6526e5fc9726688d7bb3dfdd6ae3c8b1e7dd09f601e5971",
            tensors_sha256="4cb3c4c7a8e63a57fe91bdabea4a2aca051c901142677f7eaf677bd1eb62ef62",
            url=ntire2026_url("team00_SPAN.pth"),
        )
    },
    pretrained="esrjax_plugins.pretrained:span.safetensors",
    torch_names=TORCH_NAMES,
    reported={
        "params": 150_688,
        "macs": 9_833_807_872,
        "activations": 41_680_896,
        "convs": 22,
        "psnr_valid": 26.94,
        "psnr_test": 27.01,
        "runtime_ms": 7.650,
    },
)
