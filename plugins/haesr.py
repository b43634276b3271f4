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

LB mixes channels and neighbours (a 3x3 branch, and 31x1 after 1x31 on a quarter of the channels).
SLA and SGA apply the local and the global map, each with its gated feed-forward. BlockC is
attention between channels, over window partitions and over grid partitions.

Report and code differ: the report's block is a mixer and the spatial attention; the code has three
such stages on ever fewer channels, then the channel attention, and ESA after each block. The
extended windows are zero outside the image, and those keys are not masked.

Training recipe of the report: L1 on DIV2K and LSDIR; HR patches of 256, then 384, batch size 32;
AdamW (0.9, 0.99); 500k steps from 5e-4, halved at 250k, 400k, 450k, 475k, then 300k from 5e-5,
halved every 100k. Unspecified: the second loss, weight decay, augmentation, EMA (the file holds
plain and EMA weights; the EMA weights are ranked).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.functional import gelu, global_avg_pool, matmul, normalize, pixel_shuffle, softmax
from esrjax.nn.layers import Conv2d, LayerNorm, Sequential, param

from .parts import windows
from .parts.esa import ESA
from .parts.feed_forward import GatedFeedForward
from .parts.shared_maps import (
    EPS,
    WINDOW_SIZE,
    DilatedGrid,
    LocalWindows,
    SpatialAttentionLayer,
    torch_buffers,
)
from .parts.sources import ntire2026_url

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


class LB(nnx.Module):
    """Dual-branch mixer: a depthwise 3x3 and a PLKB, concatenated and mixed by a 1x1.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, kernel_size: int, *, rngs: nnx.Rngs):
        self.DWConv3 = Conv2d(channels, channels, groups=channels, rngs=rngs)
        self.PLKB = PLKB(channels, kernel_size, rngs=rngs)
        self.conv1 = Conv2d(2 * channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return gelu(self.conv1(jnp.concatenate([self.DWConv3(x), self.PLKB(x)], -1)))


class PartitionedChannelAttention(nnx.Module):
    """Channel attention over each 8x8 window, or with `is_grid` over all pixels 8 apart.

    Maps `(N, h, w, C)` to the same shape; `h` and `w` must be multiples of 8.
    """

    def __init__(self, channels: int, is_grid: bool, *, rngs: nnx.Rngs):
        self.is_grid = is_grid
        self.qkv = Conv2d(channels, 3 * channels, 1, bias=False, rngs=rngs)
        self.qkv_dwconv = Conv2d(
            3 * channels, 3 * channels, groups=3 * channels, bias=False, rngs=rngs
        )
        self.temperature = param(jnp.ones((1, 1, 1)))
        self.project_out = Conv2d(channels, channels, 1, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        height, width = x.shape[1:3]
        partition, reverse, set_h, set_w = (
            (
                windows.grid_partition,
                windows.grid_reverse,
                height // WINDOW_SIZE,
                width // WINDOW_SIZE,
            )
            if self.is_grid
            else (windows.window_partition, windows.window_reverse, WINDOW_SIZE, WINDOW_SIZE)
        )
        q, k, v = jnp.split(partition(self.qkv_dwconv(self.qkv(x)), set_h, set_w), 3, axis=-1)
        logits = matmul(normalize(q, -2).mT, normalize(k, -2)) * self.temperature[...][None]
        y = matmul(v, softmax(logits).mT)
        return self.project_out(reverse(y, set_h, set_w, height, width))


class BlockC(nnx.Module):
    """Channel attention over windows, then over grids, each with its gated feed-forward.

    Maps `(N, h, w, C)` to the same shape.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.canorm1, self.cnorm1, self.canorm2, self.cnorm2 = (
            LayerNorm(channels, eps=EPS) for _ in range(4)
        )
        self.cttn1, self.cttn2 = (
            PartitionedChannelAttention(channels, is_grid, rngs=rngs) for is_grid in (False, True)
        )
        self.gfn1, self.gfn2 = (GatedFeedForward(channels, channels, rngs=rngs) for _ in range(2))

    def __call__(self, x: Array) -> Array:
        x = x + self.cttn1(self.canorm1(x))
        x = x + self.gfn1(self.cnorm1(x))
        x = x + self.cttn2(self.canorm2(x))
        return x + self.gfn2(self.cnorm2(x))


class HybridAttentionBlock(nnx.Module):
    """Hybrid attention block (HAB); with `is_shared` the one that shares given maps (SHAB).

    Three stages on all, three quarters and half of the channels, then channel attention. Called
    with `x (N, h, w, C)` and six maps, which are ignored unless `is_shared`; returns the same shape
    and the six maps used.
    """

    def __init__(self, channels: int, kernel_size: int, is_shared: bool, *, rngs: nnx.Rngs):
        quarter = channels // 4
        self.LB1, self.LB2, self.LB3 = (LB(n * quarter, kernel_size, rngs=rngs) for n in (4, 3, 2))
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
        self.BlockC = BlockC(channels, rngs=rngs)

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


class HybridAttentionGroup(nnx.Module):
    """A hybrid attention block with its residual, then ESA; same arguments and results."""

    def __init__(self, channels: int, kernel_size: int, is_shared: bool, *, rngs: nnx.Rngs):
        self.body = HybridAttentionBlock(channels, kernel_size, is_shared, rngs=rngs)
        self.res_end = Conv2d(channels, channels, 1, rngs=rngs)
        self.esa = ESA(channels, channels // 3, rngs=rngs)

    def __call__(self, x: Array, attn_maps: AttnMaps) -> tuple[Array, AttnMaps]:
        y, new_maps = self.body(x, attn_maps)
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
            setattr(
                self,
                f"block{i}",
                HybridAttentionGroup(channels, kernel_size, is_shared=i > 0, rngs=rngs),
            )
        self.output = Conv2d(channels, channels, rngs=rngs)
        self.up = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        shallow = self.input(windows.pad_to_multiple(x, WINDOW_SIZE))
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
    description=__doc__,
    test_hparams={"num_shared_blocks": 1, "kernel_size": 7},
    min_side=9,  # padded to 8 pixels, ESA's pooling would have no output
    needs_full_image=True,
    weights={
        "ntire2026": Weights(
            sha256="7734156836614b543dcc67eb198b8225f7cd0cf0fe03b66bbc2aa1c3f89ad445",
            url=ntire2026_url("team06_HAESR.pth"),
            state_dict_key="params_ema",
            other_keys=("params",),
        )
    },
    torch_names={
        "block0.residual_layer.0.{a}.attn.rel_pos_bias.weight": "block0.body.{a}.attn.grid_bias",
        **{
            f"{theirs}.{tail}": f"{ours}.{tail}"
            for theirs, ours in {
                "block0.residual_layer.0": "block0.body",
                "block{i}.residual_layer": "block{i}.body",
            }.items()
            for tail in (
                "{a}.{b}.{c}.{d}.{leaf}",
                "{a}.{b}.{c}.{leaf}",
                "{a}.{b}.{leaf}",
                "{a}.{leaf}",
            )
        },
    },
    torch_buffers=torch_buffers,
    unused_torch_keys={"*_indices": "constants: positions of queries and keys"},
    cost_excluded={
        "*norm?": "a layer norm of the team's own",
        "*norm": "a layer norm of the team's own",
    },
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
