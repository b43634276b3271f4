"""SAFMN-Deep15: spatially adaptive feature modulation in fifteen blocks, by team MDAP.

The channels of a block are split in four; each quarter passes a depthwise convolution at full,
half, quarter or eighth resolution. Resized to full resolution and mixed, they gate the normalized
input. The network learns the residual to bilinear upsampling.

    x ─┬─ to_feat ─┬─ block 0 … 14 ─ + ─ upsampler ─ shuffle ─ +
       │           └─────────────────┘                         │
       └─ bilinear ────────────────────────────────────────────┘

The norms use mean and variance of the whole image, so tiled inference changes every pixel.

Report and code differ: the report adds the upsampled image before the shuffle, where the shapes do
not match; the code adds it after. The report does not mention the sum with the first features, nor
that the pooling takes maxima of floored sizes. The PSNR is below the threshold of the 2026
challenge, therefore the method has no rank.

Training recipe of the report: DIV2K and LSDIR, LR patches of 64, batch size 32; AdamW (weight decay
0.01) at 2e-4; Charbonnier and 0.05 of a Laplacian loss; then 0.5 of an L2 to features of SPAN is
added, the learning rate decays by cosine to 5e-5 and training stops at about 330k steps.
Unspecified: which features and how 28 channels are matched to 40, the steps of the first stage,
augmentation, EMA.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.functional import (
    adaptive_max_pool,
    gelu,
    pixel_shuffle,
    resize_bilinear,
    resize_nearest,
)
from esrjax.nn.layers import Conv2d, GroupNorm, Sequential

from .blocks.common import ntire2026_url

NUM_LEVELS = 4  # full size, half, quarter, eighth


class SAFM(nnx.Module):
    """Spatially adaptive feature modulation: `z -> gelu(aggregated scales of z) · z`.

    Maps `(N, h, w, C)` to the same shape. Source: SAFMN (arXiv:2302.13800).
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        c = channels // NUM_LEVELS
        self.mfr = nnx.List([Conv2d(c, c, groups=c, rngs=rngs) for _ in range(NUM_LEVELS)])
        self.aggr = Conv2d(channels, channels, 1, rngs=rngs)

    def __call__(self, z: Array) -> Array:
        h, w = z.shape[1:3]
        outputs: list[Array] = []
        for level, (conv, features) in enumerate(
            zip(self.mfr, jnp.split(z, NUM_LEVELS, -1), strict=True)
        ):
            features = conv(adaptive_max_pool(features, 2**level))
            outputs.append(resize_nearest(features, size=(h, w)) if level else features)
        return gelu(self.aggr(jnp.concatenate(outputs, -1))) * z


class AttBlock(nnx.Module):
    """Modulation, then two 1x1 convolutions, both pre-norm and residual.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm1, self.norm2 = GroupNorm(1, channels), GroupNorm(1, channels)
        self.safm = SAFM(channels, rngs=rngs)
        self.ffn = Sequential(
            [
                Conv2d(channels, 2 * channels, 1, rngs=rngs),
                gelu,
                Conv2d(2 * channels, channels, 1, rngs=rngs),
            ]
        )

    def __call__(self, x: Array) -> Array:
        x = x + self.safm(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class SAFMN(nnx.Module):
    """SAFMN: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features; a multiple of 4.
        num_blocks: Number of blocks.
        scale: Upscaling factor.
    """

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 40, num_blocks: int = 15, scale: int = 4):
        self.scale = scale
        self.to_feat = Conv2d(3, channels, rngs=rngs)
        self.blocks = Sequential([AttBlock(channels, rngs=rngs) for _ in range(num_blocks)])
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        shallow = self.to_feat(x)
        features = self.blocks(shallow) + shallow
        detail = pixel_shuffle(self.upsampler(features), self.scale)
        return detail + resize_bilinear(x, size=detail.shape[1:3])


METHOD = Method(
    network=SAFMN,
    team="MDAP",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.15",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    test_hparams={"num_blocks": 2},
    needs_full_image=True,
    weights={
        "ntire2026": Weights(
            sha256="60bb81892108ff4305b89f2fc4a27ba514b702b5ed017e19de419410e9e7711a",
            tensors_sha256="b0117a3fcc853fd762454bcf543d0ed909219722dc8827e9f7bc1c76db87c6a8",
            url=ntire2026_url("team21_SAFMN_Deep15.pth"),
        )
    },
    torch_names={"blocks.{i}.norm{j}.norm": "blocks.{i}.norm{j}"},
    reported={
        "params": 149_248,
        "macs": 9_620_355_072,
        "activations": 176_109_568,
        "convs": 107,
        "psnr_valid": 26.80,
        "psnr_test": 26.91,
        "runtime_ms": 129.702,
    },
)
