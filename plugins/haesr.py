"""HAESR: attention maps that are made once and used three times.

Transformers spend most of their time on finding out who attends to whom. Here only the first of
three blocks does: six maps, from queries and keys, over windows that see beyond themselves and
over grids spread across the picture. The other two blocks apply the same six maps to values of
their own. The most exact network of the 2026 challenge, and far from the fastest.

    conv ─┬─ block0 ─ block1 ─ block2 ─ conv ─ + ─ conv ─ shuffle
          │    └─ maps ──┴────────┘            │
          └────────────────────────────────────┘

    block: ESA(x + body(x))
    body, three times on ever fewer channels, then BlockC:

        LB ─┬─ SLA ─ SGA ─┬─ 1x1 ─┬─ the next stage
            └─ a quarter ─┘       └─ a quarter, back before the last 1x1

LB mixes channels and neighbours (3x3, beside 31x1 over 1x31 on a quarter of the channels); SLA and
SGA attend to the local and the global map, each with its gated feed-forward; BlockC attends among
channels, over tiles and over combs.

Report and code differ: the report's block is a mixer and the spatial attention; the code has three
such stages on ever fewer channels, then the channel attention, and ESA after each block. The
extended windows are zero outside the picture, and nothing masks those keys.
Recipe: L1 on DIV2K and LSDIR; HR patches of 256, then 384, batch 32; AdamW (0.9, 0.99); 500k steps
from 5e-4, halved at 250k, 400k, 450k, 475k, then 300k from 5e-5, halved every 100k. Unsaid: the
second loss, weight decay, augmentation, EMA (the file holds plain and EMA weights; EMA is ranked).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, LayerNorm, Sequential, parameter
from esrjax.network.resampling import average_pool
from esrjax.network.words import gelu, matmul, normalize, pixel_shuffle, softmax

from .parts import windows
from .parts.esa import ESA
from .parts.feed_forward import GatedFeedForward
from .parts.shared_maps import EPS, SIDE, Global, Local, Spatial, buffers
from .parts.sources import esr2026

Maps = tuple[Array | None, ...]
NO_MAPS: Maps = (None,) * 6


class LargeKernel(nnx.Module):
    """Every fourth channel sees `kernel` x `kernel` pixels; a 1x1 tells the others."""

    def __init__(self, wide: int, kernel: int, *, rngs: nnx.Rngs):
        part = wide // 4
        self.DWConv_1xK = Conv2d(part, part, (1, kernel), groups=part, rngs=rngs)
        self.DWConv_Kx1 = Conv2d(part, part, (kernel, 1), groups=part, rngs=rngs)
        self.conv1 = Conv2d(wide, wide, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        p, *others = (x[..., i::4] for i in range(4))
        p = self.DWConv_Kx1(self.DWConv_1xK(p * jax.nn.sigmoid(average_pool(p))))
        return gelu(self.conv1(jnp.concatenate([p, *others], -1)))


class Mixer(nnx.Module):
    """Near and far, side by side."""

    def __init__(self, wide: int, kernel: int, *, rngs: nnx.Rngs):
        self.DWConv3 = Conv2d(wide, wide, groups=wide, rngs=rngs)
        self.PLKB = LargeKernel(wide, kernel, rngs=rngs)
        self.conv1 = Conv2d(2 * wide, wide, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return gelu(self.conv1(jnp.concatenate([self.DWConv3(x), self.PLKB(x)], -1)))


class ChannelAttention(nnx.Module):
    """Channels attend to channels, within each tile or each comb of pixels 8 apart."""

    def __init__(self, wide: int, combed: bool, *, rngs: nnx.Rngs):
        self.combed = combed
        self.qkv = Conv2d(wide, 3 * wide, 1, bias=False, rngs=rngs)
        self.qkv_dwconv = Conv2d(3 * wide, 3 * wide, groups=3 * wide, bias=False, rngs=rngs)
        self.temperature = parameter(jnp.ones((1, 1, 1)))
        self.project_out = Conv2d(wide, wide, 1, bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        high, wide = x.shape[1:3]
        cut, join, h, w = (
            (windows.combs, windows.from_combs, high // SIDE, wide // SIDE)
            if self.combed
            else (windows.tiles, windows.from_tiles, SIDE, SIDE)
        )
        q, k, v = jnp.split(cut(self.qkv_dwconv(self.qkv(x)), h, w), 3, axis=-1)
        logits = matmul(normalize(q, -2).mT, normalize(k, -2)) * self.temperature[...][None]
        y = matmul(v, softmax(logits).mT)
        return self.project_out(join(y, h, w, high, wide))


class ChannelMix(nnx.Module):
    """Channel attention over tiles, then over combs, each with its feed-forward."""

    def __init__(self, wide: int, *, rngs: nnx.Rngs):
        self.canorm1, self.cnorm1, self.canorm2, self.cnorm2 = (
            LayerNorm(wide, eps=EPS) for _ in range(4)
        )
        self.cttn1, self.cttn2 = (
            ChannelAttention(wide, combed, rngs=rngs) for combed in (False, True)
        )
        self.gfn1, self.gfn2 = (GatedFeedForward(wide, wide, rngs=rngs) for _ in range(2))

    def __call__(self, x: Array) -> Array:
        x = x + self.cttn1(self.canorm1(x))
        x = x + self.gfn1(self.cnorm1(x))
        x = x + self.cttn2(self.canorm2(x))
        return x + self.gfn2(self.cnorm2(x))


class Body(nnx.Module):
    """Three stages on all, three and two quarters of the channels; returns its maps too."""

    def __init__(self, wide: int, kernel: int, shares: bool, *, rngs: nnx.Rngs):
        quarter = wide // 4
        self.LB1, self.LB2, self.LB3 = (Mixer(n * quarter, kernel, rngs=rngs) for n in (4, 3, 2))
        self.SLA1, self.SLA2, self.SLA3 = (
            Spatial(n * quarter, Local(pattern), shares, rngs=rngs)
            for n, pattern in ((3, "star"), (2, "cross"), (1, "corner"))
        )
        self.SGA1, self.SGA2, self.SGA3 = (
            Spatial(n * quarter, Global(rows, columns), shares, rngs=rngs)
            for n, rows, columns in ((3, 7, 7), (2, 8, 7), (1, 7, 8))
        )
        self.pw1, self.pw2, self.pw3 = (
            Conv2d(n * quarter, n * quarter, 1, rngs=rngs) for n in (4, 3, 4)
        )
        self.BlockC = ChannelMix(wide, rngs=rngs)

    def __call__(self, x: Array, given: Maps) -> tuple[Array, Maps]:
        quarter, maps, aside = x.shape[-1] // 4, (), ()
        for i, (mixer, local, spread, pointwise) in enumerate(
            (
                (self.LB1, self.SLA1, self.SGA1, self.pw1),
                (self.LB2, self.SLA2, self.SGA2, self.pw2),
                (self.LB3, self.SLA3, self.SGA3, self.pw3),
            )
        ):
            if i:
                aside, x = (*aside, x[..., :quarter]), x[..., quarter:]
            mixed = mixer(x)
            y, near = local(mixed[..., quarter:], given[2 * i])
            y, far = spread(y, given[2 * i + 1])
            maps = (*maps, near, far)
            beside = mixed[..., :quarter]
            x = pointwise(jnp.concatenate([*(aside if i == 2 else ()), y, beside], -1))
        return self.BlockC(x), maps


class Block(nnx.Module):
    """A body with its residual, then ESA."""

    def __init__(self, wide: int, kernel: int, shares: bool, *, rngs: nnx.Rngs):
        self.body = Body(wide, kernel, shares, rngs=rngs)
        self.res_end = Conv2d(wide, wide, 1, rngs=rngs)
        self.esa = ESA(wide, wide // 3, rngs=rngs)

    def __call__(self, x: Array, given: Maps) -> tuple[Array, Maps]:
        y, maps = self.body(x, given)
        return self.esa(self.res_end(y) + x), maps


class HAESR(nnx.Module):
    """HAESR of `channels` features, x`scale`: a block with maps and `shared` that share them."""

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 48,
        kernel: int = 31,
        shared: int = 2,
        scale: int = 4,
    ):
        self.shared, self.scale = shared, scale
        self.input = Conv2d(3, channels, rngs=rngs)
        for i in range(shared + 1):
            setattr(self, f"block{i}", Block(channels, kernel, shares=i > 0, rngs=rngs))
        self.output = Conv2d(channels, channels, rngs=rngs)
        self.up = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        head = self.input(windows.fill(x, SIDE))
        y, maps = head, NO_MAPS
        for i in range(self.shared + 1):
            y, maps = getattr(self, f"block{i}")(y, maps)
        y = pixel_shuffle(self.up(self.output(y) + head), self.scale)
        return y[:, : self.scale * h, : self.scale * w]


METHOD = Method(
    network=HAESR,
    team="HAESR",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section of team HAESR",
    license="MIT",
    card=__doc__,
    small={"shared": 1, "kernel": 7},
    min_side=9,  # of 8 and less nothing is left to ESA's pool
    whole_picture=True,
    weights={
        "ntire2026": Weights(
            sha256="7734156836614b543dcc67eb198b8225f7cd0cf0fe03b66bbc2aa1c3f89ad445",
            url=esr2026("team06_HAESR.pth"),
            root="params_ema",
            beside=("params",),
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
    buffers=buffers,
    unused={"*_indices": "constants: where queries and keys lie"},
    uncounted={
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
