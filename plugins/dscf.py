"""DSCF: EMSR with two chains of convolutions merged into single ones, by VARH-AI.

SPAN with 26 channels. Block 1's first convolution follows the head's without an activation between
them, so both together are one 5x5 convolution of the picture; the tail convolution enters the 1x1
fusion linearly, so its share of the fusion is one 3x3 convolution. Trained by low-rank adapters on
frozen kernels (DSCLoRA), which merge too.

    255·(x − mean) ─┬─ conv_1 ─── u ─────┬─ block_1 ─ … ─ block_6 ─ fusion ─ upsampler ─ shuffle
                    └─ conv_fused (5x5) ─┘
    fusion = conv2_fused(u_6) + conv_cat_other([u, u_1, a_6])

Report and code differ: the merge is called exact, but a pixel outside of the picture is zero to
EMSR's second convolution and a feature to the merged one, so that pictures differ along their
borders (by up to 0.025 of white at the rim, nothing 16 pixels inside; 0.005 dB on Set5). Here the
train form sees that ring too, and deploys exactly; `merge` makes DSCF of an EMSR, and the file of
EMSR is read as the train form without adapters. The published weights are EMSR's of 2025, merged:
the training that the report describes has left no trace in them. No convolution is depthwise.
Recipe: four stages of 200k steps on HR patches of 128, 256, 384 and 512, batch 64; Charbonnier,
FFT (0; 0 to 0.5; 0.5 to 0; 0), L1 to the teacher 0.1, spatial affinity 0.01; Muon 1.5e-3 on
kernels and AdamW 2e-4 on the rest, decay 1e-4; flips and turns; DIV2K and a fifth of LSDIR. Unsaid:
ranks and layers of the adapters (EMSR's, here), schedule, how the affinities are normalised; the
teacher, 30 wide, is not public.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.canvas import zero_pad
from esrjax.network.layers import Conv2d, Sequential
from esrjax.network.lora import LoRAConv2d
from esrjax.network.naming import Naming
from esrjax.network.reparam import Affine, Reparam, deploy
from esrjax.network.weights import cast, load, tensors
from esrjax.network.words import pixel_shuffle

from .emsr import EMSR
from .parts.sources import esr2025, esr2026
from .parts.spab import TORCH_NAMES as SPAN_NAMES
from .parts.spab import attention, centred

TORCH_NAMES = {
    "conv_1.eval_conv.{leaf}": "head.conv_1.{leaf}",
    "conv_1": "head.conv_1",
    "block_1.c1_r.eval_conv.{leaf}": "head.c1.{leaf}",
    "conv_fused.{leaf}": "head.conv_fused.{leaf}",
    "conv_2.eval_conv.{leaf}": "fusion.conv_2.{leaf}",
    "conv_cat.{leaf}": "fusion.conv_cat.{leaf}",
    "conv2_fused.{leaf}": "fusion.conv2_fused.{leaf}",
    "conv_cat_other.{leaf}": "fusion.conv_cat_other.{leaf}",
    **SPAN_NAMES,
}


def adapted(wide: int, out: int, *, rank: int, rngs: nnx.Rngs, padding: int = 1) -> Conv2d:
    """A 3x3 convolution with an adapter, whose factor alpha / rank is 2; none of rank 0."""
    conv = Conv2d(wide, out, padding=padding, rngs=rngs)
    return LoRAConv2d(conv, rank=rank, alpha=2 * rank, rngs=rngs) if rank else conv


class Head(Reparam):
    """`z -> (u, c1(u))` with `u = conv_1(z)`: 3x3 after 3x3, which is 5x5 when deployed.

    The picture is padded once, with the ring that `c1` must see: outside of the picture it finds
    what `conv_1` makes of the padding, where SPAN and EMSR pad `u` with zeros.
    """

    def __init__(self, channels: int, *, rank: int, rngs: nnx.Rngs):
        self.conv_1 = Conv2d(3, channels, padding=0, rngs=rngs)
        self.c1 = adapted(channels, channels, rank=rank, padding=0, rngs=rngs)

    def __call__(self, z: Array) -> tuple[Array, Array]:
        u = self.conv_1(zero_pad(z, 2))
        return u[:, 1:-1, 1:-1], self.c1(u)

    def fuse(self) -> nnx.Module:
        first = Affine.of(self.conv_1)
        return MergedHead(first.conv(), first.then(Affine.of(self.c1)).conv())


class MergedHead(nnx.Module):
    """`z -> (u, c1(u))`, side by side."""

    def __init__(self, conv_1: Conv2d, conv_fused: Conv2d):
        self.conv_1, self.conv_fused = conv_1, conv_fused

    def __call__(self, z: Array) -> tuple[Array, Array]:
        return self.conv_1(z), self.conv_fused(z)


class Fusion(Reparam):
    """`(u_0, u_1, u_6, a_6) -> conv_cat([u_0, conv_2(u_6), u_1, a_6])`: 1x1 after 3x3 is 3x3."""

    def __init__(self, channels: int, *, rank: int, rngs: nnx.Rngs):
        self.conv_2 = adapted(channels, channels, rank=rank, rngs=rngs)
        self.conv_cat = Conv2d(4 * channels, channels, 1, rngs=rngs)

    def __call__(self, head: Array, first: Array, last: Array, activated: Array) -> Array:
        return self.conv_cat(jnp.concatenate([head, self.conv_2(last), first, activated], -1))

    def fuse(self) -> nnx.Module:
        cat = Affine.of(self.conv_cat)
        head, tail, first, activated = jnp.split(cat.w, 4, axis=2)
        merged = Affine.of(self.conv_2).then(Affine(tail, cat.b))
        others = Affine(jnp.concatenate([head, first, activated], 2), merged.b)
        return MergedFusion(others.conv(), merged.conv(bias=False))


class MergedFusion(nnx.Module):
    """The same, the tail added instead of concatenated; all biases are in `conv_cat_other`."""

    def __init__(self, conv_cat_other: Conv2d, conv2_fused: Conv2d):
        self.conv_cat_other, self.conv2_fused = conv_cat_other, conv2_fused

    def __call__(self, head: Array, first: Array, last: Array, activated: Array) -> Array:
        others = jnp.concatenate([head, first, activated], -1)
        return self.conv_cat_other(others) + self.conv2_fused(last)


class Block(nnx.Module):
    """SPAN's block, from `found` on where its first convolution stands elsewhere."""

    def __init__(self, channels: int, *, rank: int, rngs: nnx.Rngs, first: bool = True):
        conv = functools.partial(adapted, channels, channels, rank=rank, rngs=rngs)
        self.c1: Any = conv() if first else None
        self.c2, self.c3 = conv(), conv()

    def __call__(self, u: Array, found: Array | None = None) -> tuple[Array, Array]:
        activated = jax.nn.silu(self.c1(u) if found is None else found)
        r = self.c3(jax.nn.silu(self.c2(activated)))
        return attention(r, u), activated


class DSCF(nnx.Module):
    """DSCF of `channels` features, x`scale`; adapters of `rank` in blocks, `tail_rank` behind."""

    def __init__(
        self,
        *,
        rngs: nnx.Rngs,
        channels: int = 26,
        rank: int = 2,
        tail_rank: int = 8,
        scale: int = 4,
    ):
        self.scale = scale
        self.head = Head(channels, rank=rank, rngs=rngs)
        self.block_1, self.block_2, self.block_3, self.block_4, self.block_5, self.block_6 = (
            Block(channels, first=i > 0, rank=rank, rngs=rngs) for i in range(6)
        )
        self.fusion = Fusion(channels, rank=tail_rank, rngs=rngs)
        self.upsampler = Sequential([adapted(channels, 3 * scale**2, rank=tail_rank, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        head, found = self.head(centred(x))
        first, activated = self.block_1(head, found)
        last = first
        for block in (self.block_2, self.block_3, self.block_4, self.block_5, self.block_6):
            last, activated = block(last)
        features = self.fusion(head, first, last, activated)
        return pixel_shuffle(self.upsampler(features), self.scale)


def merge(emsr: EMSR) -> DSCF:
    """The deploy form with the weights of an EMSR in either form; they differ along the border."""
    held = tensors(deploy(emsr), Naming(SPAN_NAMES))
    like = held["conv_cat.bias"]
    bare = DSCF(rngs=nnx.Rngs(0), channels=like.size, rank=0, tail_rank=0)
    return deploy(load(cast(bare, like.dtype), held, Naming(TORCH_NAMES)))


METHOD = Method(
    network=DSCF,
    team="VARH-AI",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.11",
    license="MIT",
    card=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="2d6157faa97494dc4970016720b75b06db584e1386c54bcaa2e45feb41e9a189",
            url=esr2026("team15_DSCF_Fused.pth"),
        ),
        "emsr2025": Weights(
            sha256="239e76bc4e4e738491c3963805c0a79f524400acf5fbde34b2cb1a855dd62cb1",
            url=esr2025("team23_DSCF.pth"),
            form="train",
            sizes={"rank": 0, "tail_rank": 0},
        ),
    },
    torch_names=TORCH_NAMES,
    reported={
        "params": 125_992,
        "macs": 8_219_787_264,
        "activations": 38_928_384,
        "convs": 22,
        "psnr_valid": 26.92,
        "psnr_test": 26.99,
        "runtime_ms": 7.892,
    },
)
