"""HFENet: hierarchical feature enhancement by large kernels and entropy, by team Sunflower.

Each of seven blocks has two halves. The spatial half weighs pixels: three groups of channels have
receptive fields of 3 to 21 pixels through pairs of dilated depthwise convolutions, mixed pixel by
pixel. The channel half weighs channels by how much they vary over the image, measured by the
entropy of a Gaussian. A gated feed-forward follows either half.

    x − mean ─ simple_encoder ─ gelu ─┬─ block 0 … 6 ─ after_pipe ─ + ─ upsampler ─ shuffle ─ + mean
                                      └─────────────────────────────┘

The variance is that of the whole image, so tiled inference changes the result. A channel that is
constant over the image has the entropy −∞: the original has no epsilon there, and neither has this
implementation.

Report and code differ: the entropy is ½·ln(2πeσ²), the report leaves out e; the attention map of
the first half is a GELU, its sigmoid only mixes the pairs; the convolutions of that half use
reflect padding. The organisers' PSNR and times are of half precision, to which the original casts
itself on a GPU; in float32, as here and on a CPU, the output differs by at most 1.6e-3.

Training recipe of the report: DIV2K and LSDIR, patches of 128 (LR or HR is unspecified), batch size
16, L1, Adam at 5e-4, halved after 250k, 400k, 450k, 475k of 500k steps. Unspecified: augmentation,
EMA.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import CostOptions, Method, Weights
from esrjax.nn.functional import gelu, pixel_shuffle, reflect_pad, spatial_var
from esrjax.nn.layers import Conv2d, LayerNorm, Sequential

from .blocks.common import ntire2026_url, rgb_mean


class ReflectDepthwiseConv2d(Conv2d):
    """Depthwise convolution with reflect padding, `(N, h, w, C)` to the same shape."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, *, rngs: nnx.Rngs):
        super().__init__(
            channels,
            channels,
            kernel_size,
            padding=0,
            dilation=dilation,
            groups=channels,
            rngs=rngs,
        )
        self.pad = dilation * (kernel_size - 1) // 2

    def __call__(self, x: Array) -> Array:
        return super().__call__(reflect_pad(x, pad=self.pad))


class MSLKA(nnx.Module):
    """Multi-scale large kernel attention: `y · gelu(conv(large-kernel features of y))`.

    Maps `(N, h, w, C)` to the same shape. A pair of convolutions is named by the sizes in the
    report: 7 and 13 pixels, 3 and 19, 5 and 21.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        c = channels // 3
        self.conv = Conv2d(channels, channels, 1, bias=False, rngs=rngs)
        self.conv3_7, self.conv3_13 = (ReflectDepthwiseConv2d(c, k, 3, rngs=rngs) for k in (3, 5))
        self.conv3_3, self.conv3_19 = (
            ReflectDepthwiseConv2d(c, 3, 1, rngs=rngs),
            ReflectDepthwiseConv2d(c, 7, 3, rngs=rngs),
        )
        self.conv3_5, self.conv3_21 = (ReflectDepthwiseConv2d(c, 5, d, rngs=rngs) for d in (1, 5))
        self.mix1, self.mix2, self.mix3 = (
            Sequential([Conv2d(2 * c, 2, 1, rngs=rngs), jax.nn.sigmoid]) for _ in range(3)
        )

    def __call__(self, y: Array) -> Array:
        pairs = (
            (self.conv3_7, self.conv3_13, self.mix1),
            (self.conv3_3, self.conv3_19, self.mix2),
            (self.conv3_5, self.conv3_21, self.mix3),
        )
        outputs: list[Array] = []
        for (conv_small, conv_large, mix), group in zip(pairs, jnp.split(y, 3, -1), strict=True):
            small = conv_small(group)
            large = conv_large(small)
            weights = mix(jnp.concatenate([small, large], -1))
            outputs.append(weights[..., :1] * small + weights[..., 1:] * large)
        return y * gelu(self.conv(jnp.concatenate(outputs, -1)))


class EA(nnx.Module):
    """Entropy attention: channels scaled by a sigmoid of the entropy of `hidden_channels` mixtures.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, hidden_channels: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv2d(channels, hidden_channels, 1, rngs=rngs)
        self.conv2 = Conv2d(hidden_channels, channels, 1, rngs=rngs)

    def __call__(self, y: Array) -> Array:
        variance = spatial_var(self.conv1(y))
        entropy = 0.5 * jnp.log(2 * math.pi * math.e * variance)
        return y * jax.nn.sigmoid(self.conv2(entropy))


class GFN(nnx.Module):
    """Gated feed-forward: one half of the channels times a depthwise 3x3 of the other half.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv2d(channels, 2 * channels, 1, rngs=rngs)
        self.dwconv = Conv2d(channels, channels, groups=channels, rngs=rngs)
        self.conv2 = Conv2d(channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        a, b = jnp.split(self.conv1(x), 2, -1)
        return self.conv2(self.dwconv(b) * a)


class SLKAB(nnx.Module):
    """Spatial half: large kernel attention, then the feed-forward, both pre-norm and residual.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.layer_norm_pre, self.layer_norm_aft = LayerNorm(channels), LayerNorm(channels)
        self.encoder = Conv2d(channels, 2 * channels, 1, rngs=rngs)
        self.slka = MSLKA(2 * channels, rngs=rngs)
        self.decoder = Conv2d(2 * channels, channels, 1, rngs=rngs)
        self.sgfn = GFN(channels, rngs=rngs)

    def __call__(self, u: Array) -> Array:
        u = u + self.decoder(self.slka(gelu(self.encoder(self.layer_norm_pre(u)))))
        return u + self.sgfn(self.layer_norm_aft(u))


class EAB(nnx.Module):
    """Channel half: entropy attention, then the feed-forward, both pre-norm and residual.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.layer_norm_pre, self.layer_norm_aft = LayerNorm(channels), LayerNorm(channels)
        self.conv1 = Conv2d(channels, 2 * channels, 1, rngs=rngs)
        self.attn = EA(2 * channels, 2 * channels // 9, rngs=rngs)
        self.conv2 = Conv2d(2 * channels, channels, 1, rngs=rngs)
        self.ffn = GFN(channels, rngs=rngs)

    def __call__(self, u: Array) -> Array:
        u = u + self.conv2(self.attn(gelu(self.conv1(self.layer_norm_pre(u)))))
        return u + self.ffn(self.layer_norm_aft(u))


class HFENetBlock(nnx.Module):
    """The spatial and the channel half in series: `(N, h, w, C)` to the same shape."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.slkab = SLKAB(channels, rngs=rngs)
        self.eab = EAB(channels, rngs=rngs)

    def __call__(self, u: Array) -> Array:
        return self.eab(self.slkab(u))


class HFENet(nnx.Module):
    """HFENet: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features; a multiple of 3.
        num_blocks: Number of blocks.
        scale: Upscaling factor.
    """

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 27, num_blocks: int = 7, scale: int = 4):
        self.scale = scale
        self.simple_encoder = Conv2d(3, channels, rngs=rngs)
        self.pipeline = Sequential([HFENetBlock(channels, rngs=rngs) for _ in range(num_blocks)])
        self.after_pipe = Conv2d(channels, channels, rngs=rngs)
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        mean = rgb_mean(x)
        shallow = gelu(self.simple_encoder(x - mean))
        features = self.after_pipe(self.pipeline(shallow)) + shallow
        return pixel_shuffle(self.upsampler(features), self.scale) + mean


METHOD = Method(
    network=HFENet,
    team="Sunflower",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    test_hparams={"num_blocks": 2},
    min_side=11,
    needs_full_image=True,
    weights={
        "ntire2026": Weights(
            sha256="7fb67e20459d1b5e8a93d3e5dc1b2b8ec4a7f366c29b9f27ece9dbcb4c955457",
            tensors_sha256="041329cdaf9d0069ffebe70c82ea4189a85dd5bd9cfc6474ab31d4b372b04312",
            url=ntire2026_url("team10_HFENet.pth"),
            state_dict_key="params",
        )
    },
    cost_options=CostOptions(
        excluded={"*.layer_norm_*": "hand-written layer norms, which the counter does not know"}
    ),
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
