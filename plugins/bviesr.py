"""BVIESR: correlations between channels in windows from 8 to 64 pixels, entered by BVI.

Attention without softmax and without heads: in every window, half of the channels are correlated
with the other half, and the correlations, a small matrix whatever the window, mix that half anew.
Windows can so be large; the five blocks use 64, 32, 8, 32 and 64 pixels. The same weights were an
entry of the 2025 challenge.

    x − mean ─ conv ─┬─ norm ─┬─ block 0 … 4 ─ conv ─ + ─ norm ─ conv ─ + ─ conv ─ shuffle ─ + mean
                     │        └───────────────────────┘                 │
                     └──────────────────────────────────────────────────┘

    block 3 is given blocks 2 and 1, block 4 is given blocks 3 and 0, through one shared linear

Report and code: the 2026 report does not mention it, and nobody measured it; the figures here are
counted as the organisers count. The norms come after the parts that they belong to. The picture is
mirrored up to a multiple of the window for every block anew; where that is more than the picture
itself, it is mirrored again and again.
Recipe: unsaid.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, LayerNorm, Linear, Sequential
from esrjax.network.words import matmul, pixel_shuffle

from .parts.colour import mean_colour
from .parts.feed_forward import ConvFFN
from .parts.sources import esr2026
from .parts.windows import fill, from_tiles, tiles


class DualFeatures(nnx.Module):
    """The product of what a narrow 3x3 and what a 1x1 see."""

    def __init__(self, wide: int, *, rngs: nnx.Rngs):
        narrow = wide // 5
        self.squeeze = Conv2d(wide, narrow, 1, rngs=rngs)
        self.look = Conv2d(narrow, narrow, rngs=rngs)
        self.expand = Conv2d(narrow, wide, 1, rngs=rngs)
        self.linear = Conv2d(wide, wide, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        narrow = jax.nn.leaky_relu(self.squeeze(x), 0.2)
        return self.expand(jax.nn.leaky_relu(self.look(narrow), 0.2)) * self.linear(x)


class Correlation(nnx.Module):
    """`v (qᵀv / L)ᵀ` in every window of `L = side²` pixels, of a picture that windows fill."""

    def __init__(self, wide: int, side: int, *, rngs: nnx.Rngs):
        self.side = side
        self.qv = DualFeatures(wide, rngs=rngs)
        self.proj = Linear(wide // 2, wide, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        q, v = jnp.split(tiles(self.qv(x), self.side, self.side), 2, axis=-1)
        correlations = matmul(q.mT, v) / self.side**2
        return self.proj(from_tiles(matmul(v, correlations.mT), self.side, self.side, h, w))


class Block(nnx.Module):
    """Correlation and feed-forward, each normalised after, then added."""

    def __init__(self, wide: int, side: int, *, rngs: nnx.Rngs):
        self.correlation = Correlation(wide, side, rngs=rngs)
        self.norm1 = LayerNorm(wide)
        self.mlp = ConvFFN(wide, 2 * wide, rngs=rngs)
        self.norm2 = LayerNorm(wide)

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        found = self.correlation(fill(x, self.correlation.side))[:, :h, :w]
        x = x + self.norm1(found)
        return x + self.norm2(self.mlp(x))


class BVIESR(nnx.Module):
    """BVIESR of `channels` features, x`scale`; `sides` are those of the windows of its blocks."""

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 48,
        sides: tuple[int, ...] = (64, 32, 8, 32, 64),
        scale: int = 4,
    ):
        self.scale = scale
        self.conv_first = Conv2d(3, channels, rngs=rngs)
        self.patch_norm = LayerNorm(channels)
        self.blocks = nnx.List([Block(channels, side, rngs=rngs) for side in sides])
        self.merge = Linear(2 * channels, channels, rngs=rngs)
        self.conv = Conv2d(channels, channels, rngs=rngs)
        self.norm = LayerNorm(channels)
        self.conv_after_body = Conv2d(channels, channels, rngs=rngs)
        self.upsample = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        mean = mean_colour(x)
        shallow = self.conv_first(x - mean)
        first = self.patch_norm(shallow)
        deep = self.conv(self.body(first)) + first
        deep = self.conv_after_body(self.norm(deep)) + shallow
        return pixel_shuffle(self.upsample(deep), self.scale) + mean

    def body(self, x: Array) -> Array:
        """The blocks; those past the middle are also given what the block opposite made."""
        made: list[Array] = []
        for i, block in enumerate(self.blocks):
            if 2 * i > len(self.blocks):
                x = self.merge(jnp.concatenate([x, made[len(self.blocks) - 1 - i]], -1))
            x = block(x)
            made.append(x)
        return x


METHOD = Method(
    network=BVIESR,
    team="BVI",
    paper="NTIRE 2026 Efficient Super-Resolution challenge, team 19 (not in the report)",
    license="MIT",
    card=__doc__,
    min_side=2,  # there is no mirror image of one pixel
    whole_picture=True,
    weights={
        "ntire2026": Weights(
            sha256="3f57996fd52df0a41ca6b5ba1ff07d1a1c3b808a647c49c9c5f566e0733a7386",
            url=esr2026("team19_BVIESR.pth"),
            root="params",
        )
    },
    torch_names={
        "patch_embed.norm.{leaf}": "patch_norm.{leaf}",
        "layers.0.conv.{leaf}": "conv.{leaf}",
        "layers.0.residual_group.convs.{leaf}": "merge.{leaf}",
        **{
            f"layers.0.residual_group.blocks.{{i}}.{theirs}": f"blocks.{{i}}.{ours}"
            for theirs, ours in {
                "correlation.qv.conv.0.{leaf}": "correlation.qv.squeeze.{leaf}",
                "correlation.qv.conv.2.{leaf}": "correlation.qv.look.{leaf}",
                "correlation.qv.conv.4.{leaf}": "correlation.qv.expand.{leaf}",
                "mlp.dwconv.depthwise_conv.0.{leaf}": "mlp.dwconv.{leaf}",
                "{a}.{b}.{c}.{leaf}": "{a}.{b}.{c}.{leaf}",
                "{a}.{b}.{leaf}": "{a}.{b}.{leaf}",
                "{a}.{leaf}": "{a}.{leaf}",
            }.items()
        },
        "layers.0.residual_group.blocks.{i}": "blocks.{i}",
    },
    reported={
        "params": 154_839,
        "macs": 10_792_796_160,
        "activations": 81_395_712,
        "convs": 29,
    },
)
