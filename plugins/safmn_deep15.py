"""SAFMN-Deep15: fifteen blocks that see every feature at four sizes, by MDAP.

The channels of a block are cut in four; each quarter passes a depthwise convolution at full, half,
quarter or eighth size. Brought back to full size and mixed, they gate the normalised input. The
network learns what bilinear enlargement lacks.

    x ─┬─ to_feat ─┬─ block 0 … 14 ─ + ─ upsampler ─ shuffle ─ +
       │           └─────────────────┘                         │
       └─ bilinear ────────────────────────────────────────────┘

The norms take mean and variance of the whole picture: tiles change every pixel.
Report and code: the report adds the enlarged picture before the shuffle, where it does not fit; the
code adds it after. It does not tell of the sum with the first features, nor that the pools take
maxima of floored sizes. Below the threshold of the 2026 challenge, therefore without a rank.
Recipe: DIV2K and LSDIR, LR patches of 64, batch 32; AdamW (weight decay 0.01) at 2e-4; Charbonnier
and 0.05 of a Laplacian loss; then 0.5 of an L2 to features of SPAN is added, the rate falls by
cosine to 5e-5 and training stops at about 330k steps. Unsaid: which features and how 28 channels
meet 40, the steps of the first stage, augmentation, the averaging of weights.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, GroupNorm, Sequential
from esrjax.network.resampling import adaptive_max_pool, bilinear, nearest
from esrjax.network.words import gelu, pixel_shuffle

from .parts.sources import esr2026

LEVELS = 4  # full size, half, quarter, eighth


class SAFM(nnx.Module):
    """Spatially adaptive feature modulation: `z -> gelu(mixed sizes of z) · z`.

    Source: SAFMN (arXiv:2302.13800).
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        c = channels // LEVELS
        self.mfr = nnx.List([Conv2d(c, c, groups=c, rngs=rngs) for _ in range(LEVELS)])
        self.aggr = Conv2d(channels, channels, 1, rngs=rngs)

    def __call__(self, z: Array) -> Array:
        h, w = z.shape[1:3]
        seen: list[Array] = []
        for level, (conv, part) in enumerate(zip(self.mfr, jnp.split(z, LEVELS, -1), strict=True)):
            part = conv(adaptive_max_pool(part, 2**level))
            seen.append(nearest(part, size=(h, w)) if level else part)
        return gelu(self.aggr(jnp.concatenate(seen, -1))) * z


class Block(nnx.Module):
    """Modulation, then two 1x1 convolutions, each normalised and beside the identity."""

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
    """SAFMN of `channels` features in `blocks` blocks, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 40, blocks: int = 15, scale: int = 4):
        self.scale = scale
        self.to_feat = Conv2d(3, channels, rngs=rngs)
        self.blocks = Sequential([Block(channels, rngs=rngs) for _ in range(blocks)])
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        shallow = self.to_feat(x)
        features = self.blocks(shallow) + shallow
        detail = pixel_shuffle(self.upsampler(features), self.scale)
        return detail + bilinear(x, size=detail.shape[1:3])


METHOD = Method(
    network=SAFMN,
    team="MDAP",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.15",
    license="MIT",
    card=__doc__,
    whole_picture=True,
    weights={
        "ntire2026": Weights(
            sha256="60bb81892108ff4305b89f2fc4a27ba514b702b5ed017e19de419410e9e7711a",
            url=esr2026("team21_SAFMN_Deep15.pth"),
        )
    },
    torch_names={"blocks.{i}.norm{j}.norm.{leaf}": "blocks.{i}.norm{j}.{leaf}"},
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
