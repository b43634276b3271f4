"""MambaGate-SR: SPAN with a gate that has read the whole picture, by CUIT HTT.

Where SPAN gates what a block has found by itself, here a Mamba layer reads it pixel by pixel, row
by row, and its output decides: half as much at every pixel, or half as much again. The gate starts
at zero, so that training starts from a plain residual network.

    x − mean ─ conv_1 ─ block_1 … block_5 ─ block_6 ─ conv_2 ─┐
                 │         │         └────────────────────────┤ concat ─ conv_cat ─ conv ─ shuffle
                 └─────────┴──────────────────────────────────┘
    block: v·(1 + gate(r)), with r = c3(silu(c2(silu(c1(u))))) and v = u + r
    gate: 1x1 ─ LayerNorm ─ Mamba ─ 1x1 ─ sigmoid − ½

Report and code differ: the 1.106 M parameters hold the branches of training, which the released
class keeps beside the fused convolutions and never reads; they are carried here too, and the
honest figure leaves them out. The report does not say that the reading has one direction, that the
fifth block's output replaces SPAN's inner feature, nor that the picture is not scaled to bytes.
The organisers' counter sees of Mamba only its first projection. No trained weights were released:
`seed0` is the released class with random weights, and checks the arithmetic alone.
Recipe: L1, 0.2·L1 to a SwinIR teacher and 0.1·Laplacian distillation; DIV2K and LSDIR, HR patches
of 256, batch 16; Adam, 300k steps from 2e-4, halved at 200k, EMA 0.999. Unsaid: which SwinIR.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, LayerNorm, Sequential
from esrjax.network.words import pixel_shuffle

from .parts import spab
from .parts.colour import mean_colour
from .parts.mamba import Mamba


class CarryingConv(Conv2d):
    """A convolution that carries the branches it was fused from; nothing reads them."""

    def __init__(self, wide: int, out: int, *, sk: Conv2d, conv: Sequential, rngs: nnx.Rngs):
        super().__init__(wide, out, rngs=rngs)
        self.sk, self.conv = sk, conv


class Conv3XC(spab.Conv3XC):
    """SPAN's convolution at its own width; the file of the team keeps its branches."""

    def __init__(self, wide: int, out: int, *, rngs: nnx.Rngs):
        super().__init__(wide, out, gain=1, rngs=rngs)

    def fuse(self) -> CarryingConv:
        fused = super().fuse()
        wide, out = fused.weight.shape[2:]
        carrying = CarryingConv(wide, out, sk=self.sk, conv=self.conv, rngs=nnx.Rngs(0))
        carrying.weight, carrying.bias = fused.weight, fused.bias
        return carrying


class Gate(nnx.Module):
    """`r -> (−½, ½)`, by Mamba over the pixels row by row; 0 at first."""

    def __init__(self, channels: int, states: int, *, rngs: nnx.Rngs):
        self.in_proj = Conv2d(channels, channels, 1, rngs=rngs)
        self.norm = LayerNorm(channels)
        self.mamba = Mamba(channels, states=states, rngs=rngs)
        self.out_proj = Conv2d(channels, channels, 1, rngs=rngs)
        for leaf in (self.out_proj.weight, self.out_proj.bias):
            leaf[...] = jnp.zeros_like(leaf[...])

    def __call__(self, r: Array) -> Array:
        tokens = self.in_proj(r).reshape(r.shape[0], -1, r.shape[-1])
        read = self.mamba(self.norm(tokens)).reshape(r.shape)
        return jax.nn.sigmoid(self.out_proj(read)) - 0.5


class MGAB(nnx.Module):
    """`u -> v·(1 + gate(r))`, with `v = u + r`, and `r` three convolutions deep."""

    def __init__(self, channels: int, states: int, *, rngs: nnx.Rngs):
        self.c1, self.c2, self.c3 = (Conv3XC(channels, channels, rngs=rngs) for _ in range(3))
        self.mamba_gate = Gate(channels, states, rngs=rngs)

    def __call__(self, u: Array) -> Array:
        r = self.c3(jax.nn.silu(self.c2(jax.nn.silu(self.c1(u)))))
        v = r + u
        return v + v * self.mamba_gate(r)


class MambaGateSR(nnx.Module):
    """MambaGate-SR of `channels` features, `states` states for each of Mamba's channels."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 48, states: int = 16, scale: int = 4):
        self.scale = scale
        self.conv_1 = Conv3XC(3, channels, rngs=rngs)
        self.block_1, self.block_2, self.block_3, self.block_4, self.block_5, self.block_6 = (
            MGAB(channels, states, rngs=rngs) for _ in range(6)
        )
        self.conv_cat = Conv2d(4 * channels, channels, 1, rngs=rngs)
        self.conv_2 = Conv3XC(channels, channels, rngs=rngs)
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        head = self.conv_1(x - mean_colour(x))
        first = features = self.block_1(head)
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            features = block(features)
        last = self.conv_2(self.block_6(features))
        features = self.conv_cat(jnp.concatenate([head, last, first, features], -1))
        return pixel_shuffle(self.upsampler(features), self.scale)


INSIDE = "inside of Mamba's fused kernel"

METHOD = Method(
    network=MambaGateSR,
    team="CUIT HTT",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, MambaGate-SR",
    license="MIT",
    card=__doc__,
    whole_picture=True,
    weights={
        "seed0": Weights(sha256="5ab9eccdf4d378b1d8b5de5401a20ac1218364226961d8dccffea6cc9c611647")
    },
    torch_names=spab.TORCH_NAMES,
    uncounted={
        "*.mamba.conv1d": INSIDE,
        "*.mamba.x_proj": INSIDE,
        "*.mamba.dt_proj": INSIDE,
        "*.mamba.out_proj": INSIDE,
    },
    reported={
        "params": 1_106_028,
        "macs": 33_398_194_176,
        "activations": 106_954_752,
        "convs": 34,
        "psnr_valid": 26.90,
        "psnr_test": 27.00,
        "runtime_ms": 38.670,
    },
)
