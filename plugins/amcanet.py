"""AMCANet: adaptive multi-scale convolutional attention, by team XSR.

Seven blocks of two attention heads with 16 channels each. In a head, a chain of small convolutions,
at full size or (second head) after a max pooling of stride 4, computes a gate for values from a
depthwise convolution. A gated feed-forward follows. Both normalize their input to unit length over
the channels.

    head ─┬─ block 0 … 6 ─ conv1x1 ─ + ─ tail ─ shuffle
          └──────────────────────────┘

Report and code differ: the pooling takes maxima over 7x7 pixels without padding and is resized to
the full size, so up to three rows and columns at the bottom and right are ignored, and tiled
inference changes the result. The "normalised input" is divided by its 2-norm over the channels;
there is no LayerNorm.

Training recipe of the report: Adam, three stages of 1M steps on DIV2K and 10k images of LSDIR; HR
patches of 256, 384, 480; batch size 64, 32, 32; cosine learning rate 1e-3 to 1e-5, then twice 5e-4
to 1e-6; L1 and a Fourier loss, in the last stage L2 and the Fourier loss. Unspecified: weight and
norm of the Fourier loss, the images of the later stages, the EMA decay.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.functional import max_pool, normalize, pixel_shuffle, resize_bilinear
from esrjax.nn.layers import Conv2d, Sequential

from .blocks.common import ntire2026_url


class AMCAHead(nnx.Module):
    """One attention head: `(N, h, w, channels) -> (N, h, w, channels / num_heads)`.

    Args:
        channels: Channels of the input.
        num_heads: Heads of the block.
        stride: Stride of the max pooling before the context convolutions; 1 for none.
    """

    def __init__(self, channels: int, num_heads: int, stride: int, *, rngs: nnx.Rngs):
        c = channels // num_heads
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
        """Return features of a larger neighbourhood, at the size of `x (N, h, w, C)`."""
        coarse = x if self.stride == 1 else max_pool(x, 2 * self.stride - 1, self.stride)
        coarse = self.conv1x1_2(self.conv3x3_3(self.conv3x3_2(coarse)))
        return coarse if self.stride == 1 else resize_bilinear(coarse, size=x.shape[1:3])


class AMCA(nnx.Module):
    """Adaptive multi-scale convolution attention: the concatenated heads and a 1x1 convolution.

    Maps `(N, h, w, C)` to the same shape. The pooling strides of the heads are 1, 4, 8, ... up to
    16.
    """

    def __init__(self, channels: int, num_heads: int, *, rngs: nnx.Rngs):
        strides = [max(1, min(4 * i, 16)) for i in range(num_heads)]
        self.heads = nnx.List(
            [AMCAHead(channels, num_heads, stride, rngs=rngs) for stride in strides]
        )
        self.fusion_conv = Conv2d(channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fusion_conv(jnp.concatenate([head(x) for head in self.heads], -1))


class FSG(nnx.Module):
    """Gated feed-forward: a sigmoid of one half of the channels gates the other half.

    Maps `(N, h, w, C)` to the same shape.
    """

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
    """Block of attention (AMCA) and feed-forward (FSG), both after L2 normalization and residual.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, num_heads: int, *, rngs: nnx.Rngs):
        self.amca = AMCA(channels, num_heads, rngs=rngs)
        self.fsg = FSG(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.amca(normalize(x)) + x
        return self.fsg(normalize(x)) + x


class AMCANet(nnx.Module):
    """AMCANet: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        num_blocks: Number of blocks (MHCB).
        num_heads: Attention heads of a block; must divide `channels`.
        scale: Upscaling factor.
    """

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 32,
        num_blocks: int = 7,
        num_heads: int = 2,
        scale: int = 4,
    ):
        self.scale = scale
        self.head = Conv2d(3, channels, rngs=rngs)
        self.blocks = Sequential([MHCB(channels, num_heads, rngs=rngs) for _ in range(num_blocks)])
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
    scales=(2, 3, 4),
    description=__doc__,
    test_hparams={"num_blocks": 1},
    min_side=7,
    needs_full_image=True,
    weights={
        "ntire2026": Weights(
            sha256="99555b3283b913ff35e6e35e9f00761e4ce9a64d467b74ea1da388b743d6cbbf",
            tensors_sha256="2fee3b4c4734d03b1ff06f1d03b88ea90747da84fbdc6311b40b3683572a7d23",
            url=ntire2026_url("team17_AMCANet.pth"),
            state_dict_key="params_ema",
            other_keys=("params",),
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
