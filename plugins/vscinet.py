"""VSCINet: variance-guided spatial and channel context interaction, by team XuptSR.

The network is related to DAN. Its blocks distil features: two taps of ten channels and what remains
after two multi-scale residual convolutions, whose depthwise part has 3x3, 5x3, 3x5 and twice 3x3
kernels. DAN's attentions follow; the spatial one combines its two cues with learned factors.

    x − mean ─ to_feat ─┬─ B1 … B5 ─ all five ─ fuse ─ + ─ to_img ─ shuffle ─ + mean
                        └──────────────────────────────┘

Channel attention covers the whole patch in training and overlapping windows of 72 pixels in
evaluation (`net.train()`, `net.eval()`); the variance is always that of the whole image.

Report and code differ: the report mentions neither the distillation nor the factors; its
convolution before the shuffle is 1x1. The published 3.30 G leave out all 80 convolutions of the
multi-scale groups, because the counter does not know padding "same"; with them it is 3.60 G.

Training recipe of the report: Adam, two stages of 1M steps, batch size 64: L1 on patches of 256
from DIV2K and 10k images of LSDIR at 3e-3, then L2 on patches of 384 from DIV2K and Flickr2K at
5e-4, both halved after 100k, 500k, 800k, 900k, 950k steps. Unspecified: the second optimizer,
augmentation, EMA.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from esrjax.method import CostOptions, Method, Weights
from esrjax.nn.functional import gelu, pixel_shuffle
from esrjax.nn.layers import Conv2d, Sequential, param

from .blocks import dual_attention
from .blocks.common import ntire2026_url, rgb_mean


class InceptionDWConv(nnx.Module):
    """Depthwise convolutions of four kernel shapes, each for a quarter of the channels.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        c = channels // 4

        def conv(kh: int, kw: int) -> Conv2d:
            return Conv2d(c, c, (kh, kw), groups=c, bias=False, rngs=rngs)

        self.conv2_1, self.conv2_2, self.conv2_3 = conv(3, 3), conv(5, 3), conv(3, 5)
        self.conv2_4 = Sequential([conv(3, 3), conv(3, 3)])

    def __call__(self, x: Array) -> Array:
        branches = (self.conv2_1, self.conv2_2, self.conv2_3, self.conv2_4)
        pairs = zip(branches, jnp.split(x, 4, -1), strict=True)
        return jnp.concatenate([branch(features) for branch, features in pairs], -1)


class MSConv(nnx.Module):
    """A 1x1 convolution, then the multi-scale depthwise ones: `(N, h, w, C)` to the same shape."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv2d(channels, channels, 1, bias=False, rngs=rngs)
        self.dwc = InceptionDWConv(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.dwc(self.conv1(x))


class MSRB(MSConv):
    """Multi-scale residual block: MSConv plus its input, then GELU."""

    def __call__(self, x: Array) -> Array:
        return gelu(super().__call__(x) + x)


class VCSA(dual_attention.SpatialAttentionBlock):
    """DAN's spatial attention with learned per-channel factors for its two cues.

    At first the factors are 1 for the maxima and 0 for the variance.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        super().__init__(channels, rngs=rngs)
        ones = np.ones((1, 1, 1, channels // 2))
        self.alpha = param(ones, torch_axes=(0, 3, 1, 2))
        self.beta = param(0 * ones, torch_axes=(0, 3, 1, 2))

    def gate_input(self, pooled: Array, variance: Array) -> Array:
        """Return `α · pooled + β · variance`."""
        return self.alpha[...] * pooled + self.beta[...] * variance


class SCAB(nnx.Module):
    """Spatial-channel attention block: distillation, spatial and channel attention, plus the input.

    Maps `(N, h, w, C)` to the same shape. As in the released code, `_d` are the distilled features
    and `_r` the refined ones.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        half = channels // 2
        self.c1_d, self.c2_d = (Conv2d(channels, half, 1, rngs=rngs) for _ in range(2))
        self.c1_r, self.c2_r = (MSRB(channels, rngs=rngs) for _ in range(2))
        self.c3 = Conv2d(channels, half, groups=half, rngs=rngs)
        self.c4 = Conv2d(3 * half, channels, 1, rngs=rngs)
        self.local_handle = MSRB(channels, rngs=rngs)
        self.spatial_attn = VCSA(channels, rngs=rngs)
        self.channel_attn = dual_attention.ChannelAttentionBlock(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        refined = self.c1_r(x)
        distilled = self.c1_d(x), self.c2_d(refined), self.c3(self.c2_r(refined))
        features = self.local_handle(self.c4(gelu(jnp.concatenate(distilled, -1))))
        return self.channel_attn(self.spatial_attn(features)) + x


class VSCINet(nnx.Module):
    """VSCINet: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features; a multiple of 4.
        scale: Upscaling factor.
    """

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 20, scale: int = 4):
        self.scale = scale
        self.to_feat = Conv2d(3, channels, bias=False, rngs=rngs)
        self.B1, self.B2, self.B3, self.B4, self.B5 = (SCAB(channels, rngs=rngs) for _ in range(5))
        self.fuse = Sequential(
            [
                Conv2d(5 * channels, channels, 1, bias=False, rngs=rngs),
                gelu,
                MSConv(channels, rngs=rngs),
            ]
        )
        self.to_img = Sequential([Conv2d(channels, 3 * scale**2, 1, bias=False, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        mean = rgb_mean(x)
        shallow = self.to_feat(x - mean)
        outputs = [shallow]
        for block in (self.B1, self.B2, self.B3, self.B4, self.B5):
            outputs.append(block(outputs[-1]))
        features = self.fuse(jnp.concatenate(outputs[1:], -1)) + shallow
        return pixel_shuffle(self.to_img(features), self.scale) + mean


METHOD = Method(
    network=VSCINet,
    team="XuptSR",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    min_side=8,
    needs_full_image=True,
    weights={
        "ntire2026": Weights(
            sha256="89092055d66a5e6f94720e1741e8f41f59ed9cfa2bdebc893728d2e001add589",
            tensors_sha256="94d38a497619b0eb04ac88e8335919cfd49e0e32ef4e251799725bf473a82de9",
            url=ntire2026_url("team11_VSCINet.pth"),
            state_dict_key="params_ema",
            other_keys=("params",),
        )
    },
    torch_names={
        "B{i}.channel_attn.norm{j}.body": "B{i}.channel_attn.norm{j}",
        "B{i}.spatial_attn.belt": "B{i}.spatial_attn.beta",
    },
    cost_options=CostOptions(
        excluded={
            "*.channel_attn.norm?": "hand-written layer norms, which the counter does not know",
            "*.dwc.*": 'convolutions with padding="same", which the counter does not know',
        }
    ),
    reported={
        "params": 51_465,
        "macs": 3_298_252_800,
        "activations": 184_127_488,
        "convs": 169,
        "psnr_valid": 26.90,
        "psnr_test": 27.03,
        "runtime_ms": 51.492,
    },
)
