"""DSCF: EMSR with two chains of convolutions merged into single convolutions, by team VARH-AI.

SPAN with 26 channels. The first convolution of block 1 follows the head's convolution without an
activation between them, so the two are one 5x5 convolution of the image. The tail convolution
enters the 1x1 fusion linearly, so its part of the fusion is one 3x3 convolution. Training uses
low-rank adapters on frozen kernels (DSCLoRA), which are merged, too.

    255·(x − mean) ─┬─ conv_1 ─── u ─────┬─ block_1 ─ … ─ block_6 ─ fusion ─ upsampler ─ shuffle
                    └─ conv_fused (5x5) ─┘
    fusion = conv2_fused(u_6) + conv_cat_other([u, u_1, a_6])
    u_i: output of block i (u_0 = u); a_6: first activation inside of block 6

Report and code differ: the merge is called exact, but EMSR's second convolution sees zeros outside
of the image and the merged one sees features, so the outputs differ along the borders (by up to
0.025 of the data range at the edge, not at all from 16 pixels inside; 0.005 dB on Set5). Here the
train form pads like the merged network and deploys exactly. `merge` makes a DSCF of an EMSR, and
the file of EMSR is read as the train form without adapters. The published weights are EMSR's of
2025, merged: the training that the report describes has left no trace in them. What the report
calls depthwise convolutions are dense.

Training recipe of the report: four stages of 200k steps on patches of 128, 256, 384 and 512, batch
size 64; loss weights: Charbonnier 1, FFT 0 in the first stage, rising from 0 to 0.5 in the
second, falling to 0 in the third, 0 in the fourth, L1 to the teacher 0.1, spatial affinity 0.01;
learning rates: Muon 1.5e-3 on matrices, AdamW 2e-4 on biases; weight decay 1e-4; flips and
rotations; DIV2K and a fifth of LSDIR. Unspecified: ranks and layers of the adapters (here EMSR's),
the schedule, the normalization of the affinities, whether patches are LR or HR. The teacher, an
EMSR of 30 channels, is not public, nor is its training described.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d, Sequential
from esrjax.nn.lora import LoRAConv2d
from esrjax.nn.masking import zero_pad
from esrjax.nn.reparam import Affine, Reparam, deploy
from esrjax.nn.state_dict import KeyMap, cast, load_state_dict, to_state_dict

from .blocks.common import ntire2025_url, ntire2026_url
from .blocks.spab import TORCH_NAMES as SPAN_NAMES
from .blocks.spab import normalize_input, parameter_free_attention
from .emsr import EMSR

TORCH_NAMES = {
    "conv_1.eval_conv": "head.conv_1",
    "conv_1": "head.conv_1",
    "block_1.c1_r.eval_conv": "head.c1",
    "conv_fused": "head.conv_fused",
    "conv_2.eval_conv": "fusion.conv_2",
    "conv_cat": "fusion.conv_cat",
    "conv2_fused": "fusion.conv2_fused",
    "conv_cat_other": "fusion.conv_cat_other",
    **SPAN_NAMES,
}


def lora_conv(
    in_channels: int, out_channels: int, *, rank: int, rngs: nnx.Rngs, padding: int = 1
) -> Conv2d:
    """Return a 3x3 convolution with a LoRA adapter of alpha = 2 · rank; a plain one for rank 0."""
    conv = Conv2d(in_channels, out_channels, padding=padding, rngs=rngs)
    return LoRAConv2d(conv, rank=rank, alpha=2 * rank, rngs=rngs) if rank else conv


class DSCFHead(Reparam):
    """`z -> (u, c1(u))` with `u = conv_1(z)`, two 3x3 convolutions that deploy to one 5x5.

    Maps `z (N, h, w, 3)` to two `(N, h, w, C)`. The image is padded once, by the two pixels that
    both convolutions need: outside of the image `c1` sees `conv_1` of the padding, where SPAN and
    EMSR pad `u` with zeros. Hence the merge is exact.
    """

    def __init__(self, channels: int, *, rank: int, rngs: nnx.Rngs):
        self.conv_1 = Conv2d(3, channels, padding=0, rngs=rngs)
        self.c1 = lora_conv(channels, channels, rank=rank, padding=0, rngs=rngs)

    def __call__(self, z: Array) -> tuple[Array, Array]:
        u = self.conv_1(zero_pad(z, 2))
        return u[:, 1:-1, 1:-1], self.c1(u)

    def fuse(self) -> nnx.Module:
        first = Affine.from_conv(self.conv_1)
        return MergedHead(first.to_conv(), first.then(Affine.from_conv(self.c1)).to_conv())


class MergedHead(nnx.Module):
    """`z -> (conv_1(z), conv_fused(z))`, the deploy form of `DSCFHead`."""

    def __init__(self, conv_1: Conv2d, conv_fused: Conv2d):
        self.conv_1, self.conv_fused = conv_1, conv_fused

    def __call__(self, z: Array) -> tuple[Array, Array]:
        return self.conv_1(z), self.conv_fused(z)


class FusionConv(Reparam):
    """`(u_0, u_1, u_6, a_6) -> conv_cat([u_0, conv_2(u_6), u_1, a_6])`, all `(N, h, w, C)`.

    In deploy form `conv_2` and the part of `conv_cat` that it feeds (1x1 after 3x3) are one 3x3.
    """

    def __init__(self, channels: int, *, rank: int, rngs: nnx.Rngs):
        self.conv_2 = lora_conv(channels, channels, rank=rank, rngs=rngs)
        self.conv_cat = Conv2d(4 * channels, channels, 1, rngs=rngs)

    def __call__(self, head: Array, first: Array, last: Array, activated: Array) -> Array:
        return self.conv_cat(jnp.concatenate([head, self.conv_2(last), first, activated], -1))

    def fuse(self) -> nnx.Module:
        conv_cat = Affine.from_conv(self.conv_cat)
        head_w, last_w, first_w, activated_w = jnp.split(conv_cat.w, 4, axis=2)
        merged_conv = Affine.from_conv(self.conv_2).then(Affine(last_w, conv_cat.b))
        concat = Affine(jnp.concatenate([head_w, first_w, activated_w], 2), merged_conv.b)
        return MergedFusion(concat.to_conv(), merged_conv.to_conv(bias=False))


class MergedFusion(nnx.Module):
    """Deploy form of `FusionConv`: `conv2_fused(u_6)` is added instead of concatenated.

    All biases are in `conv_cat_other`.
    """

    def __init__(self, conv_cat_other: Conv2d, conv2_fused: Conv2d):
        self.conv_cat_other, self.conv2_fused = conv_cat_other, conv2_fused

    def __call__(self, head: Array, first: Array, last: Array, activated: Array) -> Array:
        concat = jnp.concatenate([head, first, activated], -1)
        return self.conv_cat_other(concat) + self.conv2_fused(last)


class SConvLB(nnx.Module):
    """SPAN's block with adapters: `u -> (parameter_free_attention(r, u), activated)`.

    The name is the report's. `r` is the output of three convolutions, `activated` the first
    activation between them; all are `(N, h, w, C)`. Without `has_first_conv` the block is also
    called with the output of its first convolution, which the head computes.
    """

    def __init__(self, channels: int, *, rank: int, rngs: nnx.Rngs, has_first_conv: bool = True):
        conv = functools.partial(lora_conv, channels, channels, rank=rank, rngs=rngs)
        self.c1: Any = conv() if has_first_conv else None
        self.c2, self.c3 = conv(), conv()

    def __call__(self, u: Array, first_conv_out: Array | None = None) -> tuple[Array, Array]:
        activated = jax.nn.silu(self.c1(u) if first_conv_out is None else first_conv_out)
        r = self.c3(jax.nn.silu(self.c2(activated)))
        return parameter_free_attention(r, u), activated


class DSCF(nnx.Module):
    """DSCF: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        rank: Rank of the LoRA adapters of the blocks and of `head.c1`; 0 for none.
        tail_rank: Rank of the adapters of `fusion.conv_2` and the upsampler; 0 for none.
        scale: Upscaling factor.
    """

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
        self.head = DSCFHead(channels, rank=rank, rngs=rngs)
        self.block_1, self.block_2, self.block_3, self.block_4, self.block_5, self.block_6 = (
            SConvLB(channels, has_first_conv=i > 0, rank=rank, rngs=rngs) for i in range(6)
        )
        self.fusion = FusionConv(channels, rank=tail_rank, rngs=rngs)
        self.upsampler = Sequential([lora_conv(channels, 3 * scale**2, rank=tail_rank, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        head, first_conv_out = self.head(normalize_input(x))
        first, activated = self.block_1(head, first_conv_out)
        last = first
        for block in (self.block_2, self.block_3, self.block_4, self.block_5, self.block_6):
            last, activated = block(last)
        features = self.fusion(head, first, last, activated)
        return pixel_shuffle(self.upsampler(features), self.scale)


def merge(emsr: EMSR) -> DSCF:
    """Return a DSCF in deploy form with the weights of an EMSR in either form.

    The outputs of the two networks differ along the border, see the module docstring.
    """
    state_dict = to_state_dict(deploy(emsr), KeyMap(SPAN_NAMES))
    conv_cat_bias = state_dict["conv_cat.bias"]
    dscf = DSCF(rngs=nnx.Rngs(0), channels=conv_cat_bias.size, rank=0, tail_rank=0)
    return deploy(load_state_dict(cast(dscf, conv_cat_bias.dtype), state_dict, KeyMap(TORCH_NAMES)))


METHOD = Method(
    network=DSCF,
    team="VARH-AI",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.11",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="2d6157faa97494dc4970016720b75b06db584e1386c54bcaa2e45feb41e9a189",
            tensors_sha256="0e068db3001b1b087b79bd7f58d0c1415381109454b1fc7d8974192c66d1f684",
            url=ntire2026_url("team15_DSCF_Fused.pth"),
        ),
        "emsr2025": Weights(
            sha256="239e76bc4e4e738491c3963805c0a79f524400acf5fbde34b2cb1a855dd62cb1",
            tensors_sha256="ca4ede0aaadd9d2538b7ebe7ba76766abdcadb9bc43bf48ef8b94c8e1f841f79",
            url=ntire2025_url("team23_DSCF.pth"),
            form="train",
            hparams={"rank": 0, "tail_rank": 0},
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
