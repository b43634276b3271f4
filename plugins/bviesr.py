"""BVIESR: channel self-correlation in windows from 8 to 64 pixels, by team BVI.

Attention without softmax and heads: within each window, half of the channels is correlated with the
other half, and the correlations, a matrix of a size that does not depend on the window, mix the
second half. Windows can therefore be large: the five blocks use 64, 32, 8, 32 and 64 pixels. The
same weights were an entry of the 2025 challenge. The blocks derive from HiT-SR's.

    x − mean ─ conv ─┬─ norm ─┬─ block 0 … 4 ─ conv ─ + ─ norm ─ conv ─ + ─ conv ─ shuffle ─ + mean
                     │        └───────────────────────┘                 │
                     └──────────────────────────────────────────────────┘

    block 3 receives blocks 2 and 1, block 4 receives blocks 3 and 0, through one shared linear

The 2026 report does not mention the network and no results were published; the figures here are
counted as the organisers count. The norms of a block come after attention and feed-forward
(post-norm). The image is reflect-padded to a multiple of the window separately for every block;
where the padding exceeds the image, the reflection is repeated.

Training recipe: unspecified.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.functional import matmul, pixel_shuffle
from esrjax.nn.layers import Conv2d, LayerNorm, Linear, Sequential

from .blocks.common import ntire2026_url, rgb_mean
from .blocks.feed_forward import ConvFFN
from .blocks.window_partition import pad_to_multiple, window_partition, window_reverse


class DFE(nnx.Module):
    """Dual feature extraction: the product of a bottleneck 3x3 branch and a 1x1 branch.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        reduced = channels // 5
        self.conv = Sequential(
            [
                Conv2d(channels, reduced, 1, rngs=rngs),
                _leaky_relu,
                Conv2d(reduced, reduced, rngs=rngs),
                _leaky_relu,
                Conv2d(reduced, channels, 1, rngs=rngs),
            ]
        )
        self.linear = Conv2d(channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.conv(x) * self.linear(x)


def _leaky_relu(x: Array) -> Array:
    return jax.nn.leaky_relu(x, 0.2)


class ChannelSelfCorrelation(nnx.Module):
    """Channel self-correlation `v (qᵀv / L)ᵀ` in every window of `L = window_size²` pixels.

    Maps `(N, h, w, C)` to the same shape; `h` and `w` must be multiples of `window_size`. `q` and
    `v` are half of the channels each.
    """

    def __init__(self, channels: int, window_size: int, *, rngs: nnx.Rngs):
        self.window_size = window_size
        self.qv = DFE(channels, rngs=rngs)
        self.proj = Linear(channels // 2, channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        q, v = jnp.split(
            window_partition(self.qv(x), self.window_size, self.window_size), 2, axis=-1
        )
        attn = matmul(q.mT, v) / self.window_size**2
        return self.proj(
            window_reverse(matmul(v, attn.mT), self.window_size, self.window_size, h, w)
        )


class HierarchicalTransformerBlock(nnx.Module):
    """Channel self-correlation and a convolutional feed-forward, both post-norm and residual.

    Maps `(N, h, w, C)` to the same shape, for any `h` and `w`.
    """

    def __init__(self, channels: int, window_size: int, *, rngs: nnx.Rngs):
        self.correlation = ChannelSelfCorrelation(channels, window_size, rngs=rngs)
        self.norm1 = LayerNorm(channels)
        self.mlp = ConvFFN(channels, 2 * channels, rngs=rngs)
        self.norm2 = LayerNorm(channels)

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        attn_out = self.correlation(pad_to_multiple(x, self.correlation.window_size))[:, :h, :w]
        x = x + self.norm1(attn_out)
        return x + self.norm2(self.mlp(x))


class BVIESR(nnx.Module):
    """BVIESR: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        window_sizes: Side of the windows of each block in pixels; one block per entry.
        scale: Upscaling factor.
    """

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 48,
        window_sizes: tuple[int, ...] = (64, 32, 8, 32, 64),
        scale: int = 4,
    ):
        self.scale = scale
        self.conv_first = Conv2d(3, channels, rngs=rngs)
        self.patch_norm = LayerNorm(channels)
        self.blocks = nnx.List(
            [
                HierarchicalTransformerBlock(channels, window_size, rngs=rngs)
                for window_size in window_sizes
            ]
        )
        self.merge = Linear(2 * channels, channels, rngs=rngs)
        self.conv = Conv2d(channels, channels, rngs=rngs)
        self.norm = LayerNorm(channels)
        self.conv_after_body = Conv2d(channels, channels, rngs=rngs)
        self.upsample = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        mean = rgb_mean(x)
        shallow = self.conv_first(x - mean)
        first = self.patch_norm(shallow)
        deep = self.conv(self.forward_blocks(first)) + first
        deep = self.conv_after_body(self.norm(deep)) + shallow
        return pixel_shuffle(self.upsample(deep), self.scale) + mean

    def forward_blocks(self, x: Array) -> Array:
        """Apply the blocks; one past the middle also receives the output of the opposite block."""
        outputs: list[Array] = []
        for i, block in enumerate(self.blocks):
            if 2 * i > len(self.blocks):
                x = self.merge(jnp.concatenate([x, outputs[len(self.blocks) - 1 - i]], -1))
            x = block(x)
            outputs.append(x)
        return x


METHOD = Method(
    network=BVIESR,
    team="BVI",
    paper="NTIRE 2026 Efficient Super-Resolution challenge, team 19 (not in the report)",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    min_side=2,  # one pixel cannot be reflected
    needs_full_image=True,
    weights={
        "ntire2026": Weights(
            sha256="3f57996fd52df0a41ca6b5ba1ff07d1a1c3b808a647c49c9c5f566e0733a7386",
            tensors_sha256="f8564f574e312069c35507cfc0e2057b13904156967b1ea1577705c7388ede09",
            url=ntire2026_url("team19_BVIESR.pth"),
            state_dict_key="params",
        )
    },
    torch_names={
        "patch_embed.norm": "patch_norm",
        "layers.0.conv": "conv",
        "layers.0.residual_group.convs": "merge",
        "layers.0.residual_group.blocks.{i}.mlp.dwconv.depthwise_conv.0": "blocks.{i}.mlp.dwconv",
        "layers.0.residual_group.blocks.{i}": "blocks.{i}",
    },
    reported={
        "params": 154_839,
        "macs": 10_792_796_160,
        "activations": 81_395_712,
        "convs": 29,
    },
)
