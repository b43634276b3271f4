"""AMCANet: multi-scale attention made of convolutions, by XSR.

Each of seven blocks has two heads of sixteen channels: what a chain of small convolutions sees, at
full size and (second head) after a pool of stride 4, becomes a gate for values that one depthwise
convolution made. A gated feed-forward follows; both parts see features of unit length.

    head ─┬─ block 0 … 6 ─ conv1x1 ─ + ─ tail ─ shuffle
          └──────────────────────────┘

Report and code: the pool takes maxima over 7x7 pixels without padding, so up to three rows and
columns at the far edges are unseen, and is stretched back over the whole size: tiles change the
result. The "normalised input" is divided by its 2-norm over the channels; there is no LayerNorm.
Recipe: Adam, three stages of 1M steps on DIV2K and 10k of LSDIR, HR patches of 256, 384, 480, batch
64, 32, 32, rates 1e-3 to 1e-5, then 5e-4 to 1e-6 twice, by cosine; L1 and a Fourier loss, in the
last stage L2 and the Fourier loss. Unsaid: its weight and norm, the pictures of the later stages,
the averaging of weights.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, Sequential
from esrjax.network.resampling import bilinear, max_pool
from esrjax.network.words import normalize, pixel_shuffle

from .parts.sources import esr2026


class Head(nnx.Module):
    """A gate from `stride` times coarser features, for values: `(N, h, w, heads·C) -> C`."""

    def __init__(self, channels: int, heads: int, stride: int, *, rngs: nnx.Rngs):
        c = channels // heads
        self.stride = stride
        self.conv1x1 = Conv2d(channels, 2 * c, 1, rngs=rngs)
        self.conv3x3_1, self.conv3x3_2, self.conv3x3_3, self.conv3x3_v = (
            Conv2d(c, c, groups=c, rngs=rngs) for _ in range(4)
        )
        self.conv1x1_2, self.conv1x1_3 = (Conv2d(c, c, 1, rngs=rngs) for _ in range(2))

    def __call__(self, x: Array) -> Array:
        features, values = jnp.split(self.conv1x1(x), 2, -1)
        features = self.conv3x3_1(features)
        gate = self.conv1x1_3(self.context(features) + features)
        return jax.nn.sigmoid(gate) * self.conv3x3_v(values)

    def context(self, x: Array) -> Array:
        """What is seen from further away, at the size of `x`."""
        coarse = x if self.stride == 1 else max_pool(x, 2 * self.stride - 1, self.stride)
        coarse = self.conv1x1_2(self.conv3x3_3(self.conv3x3_2(coarse)))
        return coarse if self.stride == 1 else bilinear(coarse, size=x.shape[1:3])


class AMCA(nnx.Module):
    """Adaptive multi-scale convolution attention: the heads side by side, then mixed."""

    def __init__(self, channels: int, heads: int, *, rngs: nnx.Rngs):
        strides = [max(1, min(4 * i, 16)) for i in range(heads)]
        self.heads = nnx.List([Head(channels, heads, stride, rngs=rngs) for stride in strides])
        self.fusion_conv = Conv2d(channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fusion_conv(jnp.concatenate([head(x) for head in self.heads], -1))


class FSG(nnx.Module):
    """A feed-forward whose one half gates the other."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.conv1x1_1 = Conv2d(channels, 2 * channels, 1, rngs=rngs)
        self.conv3x3_2 = Conv2d(channels, channels, groups=channels, rngs=rngs)
        self.conv1x1_2, self.conv1x1_3 = (
            Conv2d(channels, channels, 1, rngs=rngs) for _ in range(2)
        )

    def __call__(self, x: Array) -> Array:
        gate, values = jnp.split(self.conv1x1_1(x), 2, -1)
        return self.conv1x1_3(jax.nn.sigmoid(self.conv1x1_2(self.conv3x3_2(gate))) * values)


class MHCB(nnx.Module):
    """Attention, then feed-forward, each of features of unit length and beside the identity."""

    def __init__(self, channels: int, heads: int, *, rngs: nnx.Rngs):
        self.amca = AMCA(channels, heads, rngs=rngs)
        self.fsg = FSG(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.amca(normalize(x)) + x
        return self.fsg(normalize(x)) + x


class AMCANet(nnx.Module):
    """AMCANet of `channels` features in `blocks` blocks, x`scale`."""

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 32,
        blocks: int = 7,
        heads: int = 2,
        scale: int = 4,
    ):
        self.scale = scale
        self.head = Conv2d(3, channels, rngs=rngs)
        self.blocks = Sequential([MHCB(channels, heads, rngs=rngs) for _ in range(blocks)])
        self.conv1x1 = Conv2d(channels, channels, 1, rngs=rngs)
        self.tail = Conv2d(channels, 3 * scale**2, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        shallow = self.head(x)
        features = self.conv1x1(self.blocks(shallow)) + shallow
        return pixel_shuffle(self.tail(features), self.scale)


METHOD = Method(
    network=AMCANet,
    team="XSR",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.12",
    license="MIT",
    card=__doc__,
    min_side=7,
    whole_picture=True,
    weights={
        "ntire2026": Weights(
            sha256="99555b3283b913ff35e6e35e9f00761e4ce9a64d467b74ea1da388b743d6cbbf",
            url=esr2026("team17_AMCANet.pth"),
            root="params_ema",
            beside=("params",),
        )
    },
    reported={
        "params": 86_384,
        "macs": 5_243_313_888,
        "activations": 192_174_416,
        "convs": 136,
        "psnr_valid": 26.90,
        "psnr_test": 27.02,
        "runtime_ms": 18.348,
    },
)
