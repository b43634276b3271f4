"""HAESR: attention maps that are computed once and used three times, by the team of that name.

Transformers spend most of their time on attention maps. Here only the first of three blocks
computes them: six maps from queries and keys, over windows that extend beyond themselves and over
grids that span the image. The other two blocks apply the same six maps to their own values. It has
the highest PSNR of the 2026 challenge and is far from the fastest.

    conv ─┬─ block0 ─ block1 ─ block2 ─ conv ─ + ─ conv ─ shuffle
          │    └─ maps ──┴────────┘            │
          └────────────────────────────────────┘

    block: ESA(x + body(x))
    body, three times on ever fewer channels, then BlockC:

        LB ─┬─ SLA ─ SGA ─┬─ 1x1 ─┬─ the next stage
            └─ a quarter ─┘       └─ a quarter, back before the last 1x1

LB, a HFAB, mixes channels and neighbours (a 3x3 branch, and 31x1 after 1x31 on a quarter of the
channels). SLA and SGA apply the local and the global map, each with its gated feed-forward. BlockC
is attention between channels, over window partitions and over grid partitions.

Report and code differ: the report's block is a mixer and the spatial attention; the code has three
such stages on ever fewer channels, then the channel attention, and ESA after each block. The
extended windows are zero outside the image, and those keys are not masked.

Training recipe of the report: L1 on DIV2K and LSDIR; HR patches of 256, then 384, batch size 32;
AdamW (0.9, 0.99); 500k steps from 5e-4, halved at 250k, 400k, 450k, 475k, then 300k from 5e-5,
halved every 100k. Unspecified: the second loss and optimizer, weight decay, augmentation, EMA (the
file holds plain and EMA weights; the EMA weights are ranked).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import CostOptions, Method, Weights
from esrjax.nn.functional import gelu, global_avg_pool, pixel_shuffle
from esrjax.nn.layers import Conv2d, Sequential

from .blocks.common import ESA, ntire2026_url
from .blocks.haesr_attention import (
    WINDOW_SIZE,
    DilatedGrid,
    LocalWindows,
    SpatialAttentionLayer,
    TrBlockC,
    torch_buffers,
)
from .blocks.window_partition import pad_to_multiple

AttnMaps = tuple[Array | None, ...]
NO_MAPS: AttnMaps = (None,) * 6


class PLKB(nnx.Module):
    """Partial large-kernel block: a large depthwise kernel on every fourth channel, then 1x1.

    Maps `(N, h, w, C)` to the same shape. The large kernel is 1xK, then Kx1.
    """

    def __init__(self, channels: int, kernel_size: int, *, rngs: nnx.Rngs):
        dw_channels = channels // 4
        self.DWConv_1xK = Conv2d(
            dw_channels, dw_channels, (1, kernel_size), groups=dw_channels, rngs=rngs
        )
        self.DWConv_Kx1 = Conv2d(
            dw_channels, dw_channels, (kernel_size, 1), groups=dw_channels, rngs=rngs
        )
        self.conv1 = Conv2d(channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        p, *others = (x[..., i::4] for i in range(4))
        p = self.DWConv_Kx1(self.DWConv_1xK(p * jax.nn.sigmoid(global_avg_pool(p))))
        return gelu(self.conv1(jnp.concatenate([p, *others], -1)))


class HFAB(nnx.Module):
    """Dual-branch mixer: a depthwise 3x3 and a PLKB, concatenated and mixed by a 1x1.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, kernel_size: int, *, rngs: nnx.Rngs):
        self.DWConv3 = Conv2d(channels, channels, groups=channels, rngs=rngs)
        self.PLKB = PLKB(channels, kernel_size, rngs=rngs)
        self.conv1 = Conv2d(2 * channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return gelu(self.conv1(jnp.concatenate([self.DWConv3(x), self.PLKB(x)], -1)))


class HybridAttentionBlock(nnx.Module):
    """Hybrid attention block (HAB); with `is_shared` the one that shares given maps (SHAB).

    Three stages on all, three quarters and half of the channels, then channel attention. Called
    with `x (N, h, w, C)` and six maps, which are ignored unless `is_shared`; returns the same shape
    and the six maps used.
    """

    def __init__(self, channels: int, kernel_size: int, is_shared: bool, *, rngs: nnx.Rngs):
        quarter = channels // 4
        self.LB1, self.LB2, self.LB3 = (
            HFAB(n * quarter, kernel_size, rngs=rngs) for n in (4, 3, 2)
        )
        self.SLA1, self.SLA2, self.SLA3 = (
            SpatialAttentionLayer(n * quarter, LocalWindows(pattern), is_shared, rngs=rngs)
            for n, pattern in ((3, "star"), (2, "cross"), (1, "corner"))
        )
        self.SGA1, self.SGA2, self.SGA3 = (
            SpatialAttentionLayer(n * quarter, DilatedGrid(rows, columns), is_shared, rngs=rngs)
            for n, rows, columns in ((3, 7, 7), (2, 8, 7), (1, 7, 8))
        )
        self.pw1, self.pw2, self.pw3 = (
            Conv2d(n * quarter, n * quarter, 1, rngs=rngs) for n in (4, 3, 4)
        )
        self.BlockC = TrBlockC(channels, rngs=rngs)

    def __call__(self, x: Array, attn_maps: AttnMaps) -> tuple[Array, AttnMaps]:
        quarter, new_maps, distilled = x.shape[-1] // 4, (), ()
        for i, (mixer, sla, sga, pointwise) in enumerate(
            (
                (self.LB1, self.SLA1, self.SGA1, self.pw1),
                (self.LB2, self.SLA2, self.SGA2, self.pw2),
                (self.LB3, self.SLA3, self.SGA3, self.pw3),
            )
        ):
            if i:
                distilled, x = (*distilled, x[..., :quarter]), x[..., quarter:]
            mixed = mixer(x)
            y, local_map = sla(mixed[..., quarter:], attn_maps[2 * i])
            y, global_map = sga(y, attn_maps[2 * i + 1])
            new_maps = (*new_maps, local_map, global_map)
            kept = mixed[..., :quarter]
            x = pointwise(jnp.concatenate([*(distilled if i == 2 else ()), y, kept], -1))
        return self.BlockC(x), new_maps


class IDSG(nnx.Module):
    """A hybrid attention block with its residual, then ESA; same arguments and results."""

    def __init__(self, channels: int, kernel_size: int, is_shared: bool, *, rngs: nnx.Rngs):
        self.residual_layer = HybridAttentionBlock(channels, kernel_size, is_shared, rngs=rngs)
        self.res_end = Conv2d(channels, channels, 1, rngs=rngs)
        self.esa = ESA(channels, channels // 3, rngs=rngs)

    def __call__(self, x: Array, attn_maps: AttnMaps) -> tuple[Array, AttnMaps]:
        y, new_maps = self.residual_layer(x, attn_maps)
        return self.esa(self.res_end(y) + x), new_maps


class HAESR(nnx.Module):
    """HAESR: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features; a multiple of 4.
        kernel_size: Size of the large kernel.
        num_shared_blocks: Blocks that share the attention maps of the first.
        scale: Upscaling factor.
    """

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 48,
        kernel_size: int = 31,
        num_shared_blocks: int = 2,
        scale: int = 4,
    ):
        self.num_shared_blocks, self.scale = num_shared_blocks, scale
        self.input = Conv2d(3, channels, rngs=rngs)
        for i in range(num_shared_blocks + 1):
            setattr(self, f"block{i}", IDSG(channels, kernel_size, is_shared=i > 0, rngs=rngs))
        self.output = Conv2d(channels, channels, rngs=rngs)
        self.up = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        shallow = self.input(pad_to_multiple(x, WINDOW_SIZE))
        y, maps = shallow, NO_MAPS
        for i in range(self.num_shared_blocks + 1):
            y, maps = getattr(self, f"block{i}")(y, maps)
        y = pixel_shuffle(self.up(self.output(y) + shallow), self.scale)
        return y[:, : self.scale * h, : self.scale * w]


METHOD = Method(
    network=HAESR,
    team="HAESR",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section of team HAESR",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    test_hparams={"num_shared_blocks": 1, "kernel_size": 7},
    min_side=9,  # padded to 8 pixels, ESA's pooling would have no output
    needs_full_image=True,
    weights={
        "ntire2026": Weights(
            sha256="7734156836614b543dcc67eb198b8225f7cd0cf0fe03b66bbc2aa1c3f89ad445",
            tensors_sha256="9013b95b2cc4c24796d16cb900d6def89af5ace26dc424e75b9ad12ea9783665",
            url=ntire2026_url("team06_HAESR.pth"),
            state_dict_key="params_ema",
            other_keys=("params",),
        )
    },
    torch_names={
        "block0.residual_layer.0.{a}.attn.rel_pos_bias.weight": (
            "block0.residual_layer.{a}.attn.grid_bias"
        ),
        "block0.residual_layer.0": "block0.residual_layer",
    },
    torch_buffers=torch_buffers,
    unused_torch_keys={"*_indices": "constants: positions of queries and keys"},
    cost_options=CostOptions(
        excluded=dict.fromkeys(("*norm?", "*norm"), "a layer norm of the team's own")
    ),
    reported={
        "params": 352_869,
        "macs": 26_613_292_096,
        "activations": 503_778_144,
        "convs": 165,
        "psnr_valid": 27.08,
        "psnr_test": 27.22,
        "runtime_ms": 86.132,
    },
)
