"""HFENet: large kernels and the entropy of channels, by Sunflower.

Each of seven blocks has two halves. The first weighs places: three groups of channels see 3 to 21
pixels far through pairs of dilated depthwise convolutions, mixed pixel by pixel. The second weighs
channels by how much they vary over the picture, taken as the entropy of a Gaussian. A gated
feed-forward follows either.

    x − mean ─ simple_encoder ─ gelu ─┬─ block 0 … 6 ─ after_pipe ─ + ─ upsampler ─ shuffle ─ + mean
                                      └─────────────────────────────┘

The variance is of the whole picture: tiles change the result. A channel that is constant over the
picture has the entropy −∞: the original has no epsilon there, and neither have we.
Report and code: entropy is ½·ln(2πeσ²), the report leaves out e; the map of the first half is a
GELU, its sigmoid only mixes the pairs; convolutions of that half mirror the picture at its edges.
The organisers' PSNR and times are of half precision, into which the original casts itself on a
GPU; in float32, as here and on a CPU, it moves by 1.6e-3 at most.
Recipe: DIV2K and LSDIR, patches of 128 (LR or HR is unsaid), batch 16, L1, Adam at 5e-4, halved
after 250k, 400k, 450k, 475k of 500k steps. Unsaid: augmentation, the averaging of weights.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, LayerNorm, Sequential
from esrjax.network.resampling import mirror
from esrjax.network.words import gelu, picture_variance, pixel_shuffle

from .parts.colour import mean_colour
from .parts.sources import esr2026


class Mirrored(Conv2d):
    """A depthwise convolution that sees the picture mirrored at its edges instead of zeros."""

    def __init__(self, channels: int, kernel: int, dilation: int, *, rngs: nnx.Rngs):
        super().__init__(
            channels, channels, kernel, padding=0, dilation=dilation, groups=channels, rngs=rngs
        )
        self.ring = dilation * (kernel - 1) // 2

    def __call__(self, x: Array) -> Array:
        return super().__call__(mirror(x, ring=self.ring))


class MSLKA(nnx.Module):
    """Multi-scale large kernel attention: `y · gelu(what three pairs of convolutions see)`.

    A pair is named by what its convolutions see: 7 and 13 pixels, 3 and 19, 5 and 21.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        c = channels // 3
        self.conv = Conv2d(channels, channels, 1, bias=False, rngs=rngs)
        self.conv3_7, self.conv3_13 = (Mirrored(c, k, 3, rngs=rngs) for k in (3, 5))
        self.conv3_3, self.conv3_19 = Mirrored(c, 3, 1, rngs=rngs), Mirrored(c, 7, 3, rngs=rngs)
        self.conv3_5, self.conv3_21 = (Mirrored(c, 5, d, rngs=rngs) for d in (1, 5))
        self.mix1, self.mix2, self.mix3 = (
            Sequential([Conv2d(2 * c, 2, 1, rngs=rngs), jax.nn.sigmoid]) for _ in range(3)
        )

    def __call__(self, y: Array) -> Array:
        pairs = (
            (self.conv3_7, self.conv3_13, self.mix1),
            (self.conv3_3, self.conv3_19, self.mix2),
            (self.conv3_5, self.conv3_21, self.mix3),
        )
        seen: list[Array] = []
        for (near, far, mix), part in zip(pairs, jnp.split(y, 3, -1), strict=True):
            close = near(part)
            wide = far(close)
            shares = mix(jnp.concatenate([close, wide], -1))
            seen.append(shares[..., :1] * close + shares[..., 1:] * wide)
        return y * gelu(self.conv(jnp.concatenate(seen, -1)))


class EA(nnx.Module):
    """Entropy attention: channels weighed by the entropy of few mixtures of them."""

    def __init__(self, channels: int, squeezed: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv2d(channels, squeezed, 1, rngs=rngs)
        self.conv2 = Conv2d(squeezed, channels, 1, rngs=rngs)

    def __call__(self, y: Array) -> Array:
        variance = picture_variance(self.conv1(y))
        entropy = 0.5 * jnp.log(2 * math.pi * math.e * variance)
        return y * jax.nn.sigmoid(self.conv2(entropy))


class GFN(nnx.Module):
    """A feed-forward of two halves; one, smoothed, multiplies the other."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv2d(channels, 2 * channels, 1, rngs=rngs)
        self.dwconv = Conv2d(channels, channels, groups=channels, rngs=rngs)
        self.conv2 = Conv2d(channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        a, b = jnp.split(self.conv1(x), 2, -1)
        return self.conv2(self.dwconv(b) * a)


class SpatialHalf(nnx.Module):
    """Weighs places, then the feed-forward; each of normalised features, beside the identity."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.layer_norm_pre, self.layer_norm_aft = LayerNorm(channels), LayerNorm(channels)
        self.encoder = Conv2d(channels, 2 * channels, 1, rngs=rngs)
        self.slka = MSLKA(2 * channels, rngs=rngs)
        self.decoder = Conv2d(2 * channels, channels, 1, rngs=rngs)
        self.sgfn = GFN(channels, rngs=rngs)

    def __call__(self, u: Array) -> Array:
        u = u + self.decoder(self.slka(gelu(self.encoder(self.layer_norm_pre(u)))))
        return u + self.sgfn(self.layer_norm_aft(u))


class ChannelHalf(nnx.Module):
    """Weighs channels, then the feed-forward; each of normalised features, beside the identity."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.layer_norm_pre, self.layer_norm_aft = LayerNorm(channels), LayerNorm(channels)
        self.conv1 = Conv2d(channels, 2 * channels, 1, rngs=rngs)
        self.attn = EA(2 * channels, 2 * channels // 9, rngs=rngs)
        self.conv2 = Conv2d(2 * channels, channels, 1, rngs=rngs)
        self.ffn = GFN(channels, rngs=rngs)

    def __call__(self, u: Array) -> Array:
        u = u + self.conv2(self.attn(gelu(self.conv1(self.layer_norm_pre(u)))))
        return u + self.ffn(self.layer_norm_aft(u))


class Block(nnx.Module):
    """Both halves in turn."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.slkab = SpatialHalf(channels, rngs=rngs)
        self.eab = ChannelHalf(channels, rngs=rngs)

    def __call__(self, u: Array) -> Array:
        return self.eab(self.slkab(u))


class HFENet(nnx.Module):
    """HFENet of `channels` features in `blocks` blocks, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 27, blocks: int = 7, scale: int = 4):
        self.scale = scale
        self.simple_encoder = Conv2d(3, channels, rngs=rngs)
        self.pipeline = Sequential([Block(channels, rngs=rngs) for _ in range(blocks)])
        self.after_pipe = Conv2d(channels, channels, rngs=rngs)
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        mean = mean_colour(x)
        shallow = gelu(self.simple_encoder(x - mean))
        features = self.after_pipe(self.pipeline(shallow)) + shallow
        return pixel_shuffle(self.upsampler(features), self.scale) + mean


METHOD = Method(
    network=HFENet,
    team="Sunflower",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report",
    license="MIT",
    card=__doc__,
    min_side=11,
    whole_picture=True,
    weights={
        "ntire2026": Weights(
            sha256="7fb67e20459d1b5e8a93d3e5dc1b2b8ec4a7f366c29b9f27ece9dbcb4c955457",
            url=esr2026("team10_HFENet.pth"),
            root="params",
        )
    },
    uncounted={"*.layer_norm_*": "layer norms written by hand, unknown to the counter"},
    reported={
        "params": 143_628,
        "macs": 8_905_165_020,
        "activations": 259_916_154,
        "convs": 157,
        "psnr_valid": 26.92,
        "psnr_test": 27.03,
        "runtime_ms": 33.734,
    },
)
