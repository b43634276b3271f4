"""VSCINet: variance-guided spatial and channel context, by XuptSR.

Kin of DAN. Its blocks distil: two taps of ten channels and what remains after two multi-scale
residual convolutions, whose depthwise part sees a square, an upright, a lying and a double square
neighbourhood. Then come DAN's attentions; that of places mixes its two cues by learned factors.

    x − mean ─ to_feat ─┬─ B1 … B5 ─ all five ─ fuse ─ + ─ to_img ─ shuffle ─ + mean
                        └──────────────────────────────┘

Channel attention is over whole patches in training and over overlapping windows of 72 pixels
otherwise (`net.train()`, `net.eval()`); variances are of the whole picture either way.
Report and code: the report tells neither of the distillation nor of the factors; its convolution
before the shuffle is 1x1. The published 3.30 G leave out all 80 convolutions of the multi-scale
groups, which the counter does not know with padding "same"; they make 3.60 G.
Recipe: Adam, two stages of 1M steps, batch 64: L1 on patches of 256 from DIV2K and 10k of LSDIR at
3e-3, then L2 on patches of 384 from DIV2K and Flickr2K at 5e-4, both halved after 100k, 500k, 800k,
900k, 950k steps. Unsaid: the second optimiser, augmentation, the averaging of weights.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, Sequential, parameter
from esrjax.network.words import gelu, pixel_shuffle

from .parts import dual_attention
from .parts.colour import mean_colour
from .parts.sources import esr2026


class Inception(nnx.Module):
    """Depthwise convolutions of four shapes, each for a quarter of the channels."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        c = channels // 4

        def conv(kh: int, kw: int) -> Conv2d:
            return Conv2d(c, c, (kh, kw), groups=c, bias=False, rngs=rngs)

        self.square, self.upright, self.lying = conv(3, 3), conv(5, 3), conv(3, 5)
        self.double = Sequential([conv(3, 3), conv(3, 3)])

    def __call__(self, x: Array) -> Array:
        shapes = (self.square, self.upright, self.lying, self.double)
        parts = zip(shapes, jnp.split(x, 4, -1), strict=True)
        return jnp.concatenate([shape(part) for shape, part in parts], -1)


class MSConv(nnx.Module):
    """A 1x1 convolution, then the depthwise ones."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv2d(channels, channels, 1, bias=False, rngs=rngs)
        self.dwc = Inception(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.dwc(self.conv1(x))


class MSRB(MSConv):
    """The same beside the identity, activated."""

    def __call__(self, x: Array) -> Array:
        return gelu(super().__call__(x) + x)


class SpatialAttention(dual_attention.SpatialAttention):
    """DAN's, its two cues weighed channel by channel; at first the maxima count alone."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        super().__init__(channels, rngs=rngs)
        one = jnp.ones((1, 1, 1, channels // 2))
        self.alpha = parameter(one, torch_axes=(0, 3, 1, 2))
        self.beta = parameter(0 * one, torch_axes=(0, 3, 1, 2))

    def cue(self, peaks: Array, variance: Array) -> Array:
        """`α·peaks + β·variance`."""
        return self.alpha[...] * peaks + self.beta[...] * variance


class SCAB(nnx.Module):
    """What is distilled (`d`) and what remains (`r`), then both attentions; beside the identity."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        half = channels // 2
        self.c1_d, self.c2_d = (Conv2d(channels, half, 1, rngs=rngs) for _ in range(2))
        self.c1_r, self.c2_r = (MSRB(channels, rngs=rngs) for _ in range(2))
        self.c3 = Conv2d(channels, half, groups=half, rngs=rngs)
        self.c4 = Conv2d(3 * half, channels, 1, rngs=rngs)
        self.local_handle = MSRB(channels, rngs=rngs)
        self.spatial_attn = SpatialAttention(channels, rngs=rngs)
        self.channel_attn = dual_attention.ChannelAttention(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        first = self.c1_r(x)
        taps = self.c1_d(x), self.c2_d(first), self.c3(self.c2_r(first))
        features = self.local_handle(self.c4(gelu(jnp.concatenate(taps, -1))))
        return self.channel_attn(self.spatial_attn(features)) + x


class VSCINet(nnx.Module):
    """VSCINet of `channels` features, x`scale`."""

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
        mean = mean_colour(x)
        shallow = self.to_feat(x - mean)
        stages = [shallow]
        for block in (self.B1, self.B2, self.B3, self.B4, self.B5):
            stages.append(block(stages[-1]))
        features = self.fuse(jnp.concatenate(stages[1:], -1)) + shallow
        return pixel_shuffle(self.to_img(features), self.scale) + mean


METHOD = Method(
    network=VSCINet,
    team="XuptSR",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report",
    license="MIT",
    card=__doc__,
    min_side=8,
    whole_picture=True,
    weights={
        "ntire2026": Weights(
            sha256="89092055d66a5e6f94720e1741e8f41f59ed9cfa2bdebc893728d2e001add589",
            url=esr2026("team11_VSCINet.pth"),
            root="params_ema",
            beside=("params",),
        )
    },
    torch_names={
        "B{i}.channel_attn.norm{j}.body.{leaf}": "B{i}.channel_attn.norm{j}.{leaf}",
        "B{i}.spatial_attn.belt": "B{i}.spatial_attn.beta",
        "{stage}.{part}.dwc.conv2_1.{leaf}": "{stage}.{part}.dwc.square.{leaf}",
        "{stage}.{part}.dwc.conv2_2.{leaf}": "{stage}.{part}.dwc.upright.{leaf}",
        "{stage}.{part}.dwc.conv2_3.{leaf}": "{stage}.{part}.dwc.lying.{leaf}",
        "{stage}.{part}.dwc.conv2_4.{i}.{leaf}": "{stage}.{part}.dwc.double.{i}.{leaf}",
    },
    uncounted={
        "*.channel_attn.norm?": "layer norms written by hand, unknown to the counter",
        "*.dwc.*": 'convolutions with padding="same", a mode unknown to the counter',
    },
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
