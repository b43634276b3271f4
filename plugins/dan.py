"""DAN: dual attention in six narrow blocks, by team 20 of the 2025 challenge.

Every block handles the neighbourhood of a pixel, then weighs places (by coarse maxima and by the
variance of the picture), then weighs channels against each other; all six results are fused. The
enlarged picture passes four depthwise convolutions, each after a GELU. ZenoSR of 2026 is built
on it, VSCINet is kin.

    x − mean ─ to_feat ─┬─ B1 … B6 ─ all six ─ fuse ─ + ─ to_img ─ shuffle ─ refine ─ + mean
                        └─────────────────────────────┘

Channel attention is over whole patches in training and over overlapping windows of 72 pixels
otherwise (`net.train()`, `net.eval()`); variances are of the whole picture either way, so tiles
change the result.
Report and code: the 2026 report only names it as what ZenoSR stands on.
Recipe: unsaid. The checkpoint holds plain weights too; the averaged ones are the method's.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, Sequential
from esrjax.network.words import gelu, pixel_shuffle

from .parts.colour import mean_colour
from .parts.dual_attention import ChannelAttention, LocalHandling, SpatialAttention
from .parts.sources import esr2025


class Block(nnx.Module):
    """Local handling, spatial attention and channel attention, beside the identity."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.local_handle = LocalHandling(channels, rngs=rngs)
        self.spatial_attn = SpatialAttention(channels, rngs=rngs)
        self.channel_attn = ChannelAttention(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.channel_attn(self.spatial_attn(self.local_handle(x))) + x


class DAN(nnx.Module):
    """DAN of `channels` features in `blocks` blocks, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 16, blocks: int = 6, scale: int = 4):
        self.blocks, self.scale = blocks, scale
        self.to_feat = Conv2d(3, channels, bias=False, rngs=rngs)
        for i in range(1, blocks + 1):
            setattr(self, f"B{i}", Block(channels, rngs=rngs))
        self.fuse = Sequential(
            [
                Conv2d(blocks * channels, channels, 1, bias=False, rngs=rngs),
                gelu,
                LocalHandling(channels, rngs=rngs),
            ]
        )
        self.to_img = Sequential([Conv2d(channels, 3 * scale**2, 1, bias=False, rngs=rngs)])
        steps = [[gelu, Conv2d(3, 3, groups=3, bias=False, rngs=rngs)] for _ in range(4)]
        self.refine = Sequential([layer for step in steps for layer in step])

    def __call__(self, x: Array) -> Array:
        mean = mean_colour(x)
        shallow = self.to_feat(x - mean)
        features = self.fuse(jnp.concatenate(self.stages(shallow), -1)) + shallow
        return self.refine(pixel_shuffle(self.to_img(features), self.scale)) + mean

    def stages(self, x: Array) -> list[Array]:
        """What each block makes of the one before it."""
        found: list[Array] = []
        for i in range(1, self.blocks + 1):
            x = getattr(self, f"B{i}")(x)
            found.append(x)
        return found


METHOD = Method(
    network=DAN,
    team="DAN",
    paper="NTIRE 2025 Efficient Super-Resolution challenge, team 20",
    license="MIT",
    card=__doc__,
    min_side=8,
    whole_picture=True,
    weights={
        "ntire2025": Weights(
            sha256="04db32e38cb45e7d69dbedb68cb6c83969fa59a761d7e9c61441c429d385e541",
            url=esr2025("team20_DAN.pth"),
            root="params_ema",
            beside=("params",),
        )
    },
    torch_names={
        "B{i}.channel_attn.norm{j}.body.{leaf}": "B{i}.channel_attn.norm{j}.{leaf}",
    },
    uncounted={"*.channel_attn.norm?": "layer norms written by hand, unknown to the counter"},
    reported={
        "params": 44_354,
        "macs": 3_126_640_640,
        "activations": 194_084_864,
        "convs": 144,
    },
)
