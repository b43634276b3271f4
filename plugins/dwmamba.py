"""DWMamba: attention and Mamba on a wavelet's quiet quarter of the picture, by WMESR.

A Haar transform halves the features. The low band, a quarter of the pixels, goes through a layer
of MambaIRv2: attention in windows, then a scan over tokens sorted by their kind. The three high
bands share a narrow path of 12 channels, which tells the scan of details and is gated by what it
found. The inverse transform puts both together.

    x − mean ─ conv ─ LayerNorm ─ group 1 … 4 ─ LayerNorm ─ conv ─ + ─ conv ─ shuffle ─ + mean
    group: two blocks, conv, + its input
    block: Haar ─┬─ LL ────────────────────────── attention ─ scan ─┬───────────┬─ inverse Haar
                 │                                              │   │           │
                 └─ HL, LH, HH ─ SKFF ─ 1x1 ─ HFBranch ─────────┴─ CFI ─ 1x1 ───┘

Report and code differ: the released code draws the kinds of tokens with fresh Gumbel noise at
inference too, and sorts them unstably, so that two runs on one picture differ by up to 0.02. Here
the best kind wins and ties keep raster order; `noise=True` draws. The wavelet loses nothing, but a
block does: it has no skip, and the high bands pass 12 channels. Over MambaIRv2 the code adds the
details to router and gate, and lets the prompts move with their tokens. The scan is free to the
organisers' counter. The picture is mirrored to whole pairs of windows below and to the right.
Recipe: a teacher (channels 132, 24 blocks; grouping unsaid) with L1 on DIV2K and LSDIR, 300k steps
of 256-pixel patches, 150k of 384, then MSE for 50k; this student for 250k with 0.5·L1 + 1.0·L1 to
the teacher. lr 2e-4, 5e-5, 1e-5; the student's, optimiser, schedules and augmentation: unsaid.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, LayerNorm, Sequential, parameter
from esrjax.network.words import gelu, pixel_shuffle

from .parts.attentive import AttentiveLayer, SortedScan, buffers
from .parts.colour import mean_colour
from .parts.sources import esr2026
from .parts.squeeze import SKFF, SqueezeExcitation
from .parts.trunk import start_small
from .parts.wavelet import haar, inverse_haar
from .parts.windows import fill


class HFBranch(nnx.Module):
    """Depthwise, pointwise, squeeze and excitation; at first a tenth beside its skip."""

    def __init__(self, details: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv2d(details, details, groups=details, rngs=rngs)
        self.conv2 = Conv2d(details, details, 1, rngs=rngs)
        self.se = SqueezeExcitation(details, 4, rngs=rngs)
        self.res_scale = parameter(jnp.full((1, 1, 1, details), 0.1), torch_axes=(0, 3, 1, 2))

    def __call__(self, v: Array) -> Array:
        return self.se(self.conv2(gelu(self.conv1(v)))) * self.res_scale[...] + v


class CFI(nnx.Module):
    """The high band, masked by the low one and mixed with it."""

    def __init__(self, channels: int, details: int, *, rngs: nnx.Rngs):
        self.struct_conv = Conv2d(channels, details, 1, rngs=rngs)
        self.fusion = Conv2d(2 * details, details, rngs=rngs)

    def __call__(self, low: Array, high: Array) -> Array:
        m = self.struct_conv(low)
        return high * jax.nn.sigmoid(m) + self.fusion(jnp.concatenate([high, m], -1))


class DetailedScan(SortedScan):
    """The scan of MambaIRv2, whose router and gate are told of the details; at first not at all."""

    prompts_move = True

    def __init__(self, channels: int, details: int, *, rngs: nnx.Rngs, **sizes: Any):
        super().__init__(channels, routed=2 * channels, rngs=rngs, **sizes)
        self.hf_align = Sequential(
            [
                Conv2d(details, details, groups=details, rngs=rngs),
                jax.nn.silu,
                Conv2d(details, channels, 1, rngs=rngs),
            ]
        )
        self.cpe_hf_proj = Conv2d(details, 2 * channels, 1, rngs=rngs)
        self.hf_gate_route = parameter(jnp.zeros(channels))
        self.hf_gate_cpe = parameter(jnp.zeros((1, 1, 1, 2 * channels)), torch_axes=(0, 3, 1, 2))

    def seen(self, u: Array, *context: Array) -> Array:
        (hf,) = context
        gate = self.hf_gate_route[...][None, None, None, :]
        return jnp.concatenate([u, self.hf_align(hf) * gate], -1)

    def gate(self, z: Array, *context: Array) -> Array:
        (hf,) = context
        return self.CPE(z) + self.cpe_hf_proj(hf) * self.hf_gate_cpe[...]


class Block(nnx.Module):
    """Low and high bands apart; sides must be even. scan: sizes of the scan."""

    def __init__(
        self,
        channels: int,
        scan: Mapping[str, Any],
        *,
        heads: int,
        side: int,
        shift: int,
        rngs: nnx.Rngs,
    ):
        details = max(channels // 4 // 4 * 4, 12)
        told = DetailedScan(channels, details, rngs=rngs, **scan)
        self.skff = SKFF(channels, 3, rngs=rngs)
        self.hf_compress = Conv2d(channels, details, 1, rngs=rngs)
        self.hf_branch = HFBranch(details, rngs=rngs)
        self.ll_branch = AttentiveLayer(
            channels, told, heads=heads, side=side, shift=shift, rngs=rngs
        )
        self.cfi = CFI(channels, details, rngs=rngs)
        self.expand_conv = Conv2d(details, 3 * channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        low, *bands = haar(x)
        high = self.hf_branch(self.hf_compress(self.skff(*bands)))
        low = self.ll_branch(low, high)
        bands = jnp.split(self.expand_conv(self.cfi(low, high)), 3, -1)
        return inverse_haar(low, *bands)


class Group(nnx.Module):
    """Blocks in turn and a convolution, beside a skip."""

    def __init__(self, channels: int, blocks: Iterable[Block], *, rngs: nnx.Rngs):
        self.layers = Sequential(blocks)
        self.conv = Conv2d(channels, channels, rngs=rngs)

    def __call__(self, t: Array) -> Array:
        return self.conv(self.layers(t)) + t


class DWMamba(nnx.Module):
    """DWMamba of `groups` x `blocks` blocks, x`scale`.

    window: its side, pixels. states: of the scan. kinds: of tokens, whose prompts have rank
    `rank`. noise: draw the kinds outside of training too, as the released code does.
    """

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 48,
        groups: int = 4,
        blocks: int = 2,
        heads: int = 4,
        window: int = 16,
        states: int = 8,
        kinds: int = 64,
        rank: int = 32,
        noise: bool = False,
        scale: int = 4,
    ):
        scan = {"states": states, "kinds": kinds, "rank": rank, "noise": noise}

        def block(index: int) -> Block:
            shift = window // 2 * (index % 2)
            return Block(channels, scan, heads=heads, side=window, shift=shift, rngs=rngs)

        self.window, self.scale = window, scale
        self.conv_first = Conv2d(3, channels, rngs=rngs)
        self.patch_norm = LayerNorm(channels)
        self.layers = Sequential(
            Group(channels, map(block, range(blocks)), rngs=rngs) for _ in range(groups)
        )
        self.norm = LayerNorm(channels)
        self.conv_after_body = Conv2d(channels, channels, rngs=rngs)
        self.upsample = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])
        start_small(self, rngs)

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        mean = mean_colour(x)
        head = self.conv_first(fill(x, 2 * self.window, "symmetric") - mean)
        body = self.conv_after_body(self.norm(self.layers(self.patch_norm(head))))
        y = pixel_shuffle(self.upsample(body + head), self.scale) + mean
        return y[:, : h * self.scale, : w * self.scale]


METHOD = Method(
    network=DWMamba,
    team="WMESR",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.10",
    license="MIT",
    card=__doc__,
    small={"groups": 1},
    min_side=16,
    whole_picture=True,
    weights={
        "ntire2026": Weights(
            sha256="c787ffb39cd9d945dc84ba22156e508e683fb6b49f1ad3c56a57679b5687411f",
            url=esr2026("team12_DWMamba.pth"),
            root="params",
        )
    },
    torch_names={
        "patch_embed.norm.{leaf}": "patch_norm.{leaf}",
        "patch_embed": "patch_norm",
        "layers.{i}.layers.{j}.ll_branch.{ffn}.dwconv.depthwise_conv.0.{leaf}": (
            "layers.{i}.layers.{j}.ll_branch.{ffn}.dwconv.{leaf}"
        ),
    },
    buffers=buffers,
    unused={"relative_position_index_SA": "a constant: which pairs of positions share a bias"},
    reported={
        "params": 673_640,
        "macs": 19_343_745_088,
        "activations": 119_538_864,
        "convs": 143,
        "psnr_valid": 26.94,
        "psnr_test": 27.06,
        "runtime_ms": 108.744,
    },
)
