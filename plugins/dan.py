"""DAN: a dual attention network of six narrow blocks, team 20 of the 2025 challenge.

A block processes the local neighbourhood, then applies spatial attention (from coarse maxima and
the variance over the image) and channel attention. The outputs of all six blocks are fused. The
upscaled image passes four depthwise convolutions, each after a GELU. ZenoSR of 2026 is built on
this network, and VSCINet is related to it.

    x − mean ─ to_feat ─┬─ B1 … B6 ─ all six ─ fuse ─ + ─ to_img ─ shuffle ─ refine ─ + mean
                        └─────────────────────────────┘

Channel attention covers the whole patch in training and overlapping windows of 72 pixels in
evaluation (`net.train()`, `net.eval()`). The variance is always that of the whole image, so tiled
inference changes the result. The 2026 report mentions the network only as the base of ZenoSR.

Training recipe: unspecified. The checkpoint holds plain weights too; the EMA weights are used.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import CostOptions, Method, Weights
from esrjax.nn.functional import gelu, pixel_shuffle
from esrjax.nn.layers import Conv2d, Sequential

from .blocks.common import ntire2025_url, rgb_mean
from .blocks.dual_attention import ChannelAttentionBlock, LocalHandlingBlock, SpatialAttentionBlock


class DANBlock(nnx.Module):
    """Local handling, spatial attention and channel attention in series, plus the input.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.local_handle = LocalHandlingBlock(channels, rngs=rngs)
        self.spatial_attn = SpatialAttentionBlock(channels, rngs=rngs)
        self.channel_attn = ChannelAttentionBlock(channels, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.channel_attn(self.spatial_attn(self.local_handle(x))) + x


class DAN(nnx.Module):
    """DAN: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        num_blocks: Number of blocks.
        scale: Upscaling factor.
    """

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 16, num_blocks: int = 6, scale: int = 4):
        self.num_blocks, self.scale = num_blocks, scale
        self.to_feat = Conv2d(3, channels, bias=False, rngs=rngs)
        for i in range(1, num_blocks + 1):
            setattr(self, f"B{i}", DANBlock(channels, rngs=rngs))
        self.fuse = Sequential(
            [
                Conv2d(num_blocks * channels, channels, 1, bias=False, rngs=rngs),
                gelu,
                LocalHandlingBlock(channels, rngs=rngs),
            ]
        )
        self.to_img = Sequential([Conv2d(channels, 3 * scale**2, 1, bias=False, rngs=rngs)])
        pairs = [[gelu, Conv2d(3, 3, groups=3, bias=False, rngs=rngs)] for _ in range(4)]
        self.refine = Sequential([layer for layers in pairs for layer in layers])

    def __call__(self, x: Array) -> Array:
        mean = rgb_mean(x)
        shallow = self.to_feat(x - mean)
        features = self.fuse(jnp.concatenate(self.block_outputs(shallow), -1)) + shallow
        return self.refine(pixel_shuffle(self.to_img(features), self.scale)) + mean

    def block_outputs(self, x: Array) -> list[Array]:
        """Return the outputs of all blocks, each applied to the one before."""
        outputs: list[Array] = []
        for i in range(1, self.num_blocks + 1):
            x = getattr(self, f"B{i}")(x)
            outputs.append(x)
        return outputs


METHOD = Method(
    network=DAN,
    team="DAN",
    paper="NTIRE 2025 Efficient Super-Resolution challenge, team 20",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    test_hparams={"num_blocks": 2},
    min_side=8,
    needs_full_image=True,
    weights={
        "ntire2025": Weights(
            sha256="04db32e38cb45e7d69dbedb68cb6c83969fa59a761d7e9c61441c429d385e541",
            tensors_sha256="6515ca4b23a519844c68556d8478c096805e6e70cc031780861b26384a0a517b",
            url=ntire2025_url("team20_DAN.pth"),
            state_dict_key="params_ema",
            other_keys=("params",),
        )
    },
    torch_names={"B{i}.channel_attn.norm{j}.body": "B{i}.channel_attn.norm{j}"},
    cost_options=CostOptions(
        excluded={
            "*.channel_attn.norm?": "hand-written layer norms, which the counter does not know"
        }
    ),
    reported={
        "params": 44_354,
        "macs": 3_126_640_640,
        "activations": 194_084_864,
        "convs": 144,
    },
)
