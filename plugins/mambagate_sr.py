"""MambaGate-SR: SPAN with a Mamba gate over the whole image, by team CUIT HTT.

SPAN computes a block's gate from the output of its convolutions, pixel by pixel. Here a Mamba layer
scans that output in raster order and computes the gate from it; every value is scaled by a factor
between 0.5 and 1.5. The gate is zero at first, so training starts from a plain residual network.

    x − mean ─ conv_1 ─ block_1 … block_5 ─ block_6 ─ conv_2 ─┐
                 │         │         └────────────────────────┤ concat ─ conv_cat ─ conv ─ shuffle
                 └─────────┴──────────────────────────────────┘
    block: v·(1 + gate(r)), with r = c3(silu(c2(silu(c1(u))))) and v = u + r
    gate: 1x1 ─ LayerNorm ─ Mamba ─ 1x1 ─ sigmoid − ½

Report and code differ: the 1.106 M parameters include the training branches, which the released
class keeps next to the merged convolutions and never uses. They are kept here too, but the full
count of `esrjax method cost` leaves them out. The report does not say that the scan has one
direction, that the fourth input of the concatenation is the fifth block's output (SPAN's is an
activation inside of its last block), nor that the image is not scaled to [0, 255]. Of a Mamba layer
the organisers' counter counts only the first projection. No trained weights were released: the
weights `seed0` are random, from the released class, and check only the arithmetic.

Training recipe of the report: L1, 0.2·L1 to a SwinIR teacher and 0.1·Laplacian distillation; DIV2K
and LSDIR, HR patches of 256, batch size 16; Adam, 300k steps, learning rate 2e-4, halved at 200k;
EMA with decay 0.999. Unspecified: which SwinIR.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import CostOptions, Method, Weights
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d, LayerNorm, Sequential

from .blocks import spab
from .blocks.common import rgb_mean
from .blocks.mamba import Mamba


class ConvWithBranches(Conv2d):
    """3x3 convolution that keeps the branches it was merged from; they are never used.

    `sk` is the 1x1 skip and `conv` the 1x1, 3x3, 1x1 chain of `Conv3XC`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, sk: Conv2d, conv: Sequential, rngs: nnx.Rngs
    ):
        super().__init__(in_channels, out_channels, rngs=rngs)
        self.sk, self.conv = sk, conv


class Conv3XCWithBranches(spab.Conv3XC):
    """SPAN's Conv3XC without expansion (`gain` 1); its deploy form keeps the branches.

    The released checkpoint keeps them, too.
    """

    def __init__(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs):
        super().__init__(in_channels, out_channels, gain=1, rngs=rngs)

    def fuse(self) -> ConvWithBranches:
        fused = super().fuse()
        in_channels, out_channels = fused.weight.shape[2:]
        conv = ConvWithBranches(
            in_channels, out_channels, sk=self.sk, conv=self.conv, rngs=nnx.Rngs(0)
        )
        conv.weight, conv.bias = fused.weight, fused.bias
        return conv


class MambaGate(nnx.Module):
    """Gate in (−½, ½) from Mamba over the pixels in raster order: `(N, h, w, C)` to the same shape.

    The output projection is zero at first, and with it the gate.
    """

    def __init__(self, channels: int, d_state: int, *, rngs: nnx.Rngs):
        self.in_proj = Conv2d(channels, channels, 1, rngs=rngs)
        self.norm = LayerNorm(channels)
        self.mamba = Mamba(channels, d_state=d_state, rngs=rngs)
        self.out_proj = Conv2d(channels, channels, 1, rngs=rngs)
        for param in (self.out_proj.weight, self.out_proj.bias):
            param[...] = jnp.zeros_like(param[...])

    def __call__(self, r: Array) -> Array:
        tokens = self.in_proj(r).reshape(r.shape[0], -1, r.shape[-1])
        mamba_out = self.mamba(self.norm(tokens)).reshape(r.shape)
        return jax.nn.sigmoid(self.out_proj(mamba_out)) - 0.5


class MGAB(nnx.Module):
    """Mamba-gated attention block: `u -> v · (1 + gate(r))` with `v = u + r`.

    Maps `u (N, h, w, C)` to the same shape; `r` is the output of three convolutions.
    """

    def __init__(self, channels: int, d_state: int, *, rngs: nnx.Rngs):
        self.c1, self.c2, self.c3 = (
            Conv3XCWithBranches(channels, channels, rngs=rngs) for _ in range(3)
        )
        self.mamba_gate = MambaGate(channels, d_state, rngs=rngs)

    def __call__(self, u: Array) -> Array:
        r = self.c3(jax.nn.silu(self.c2(jax.nn.silu(self.c1(u)))))
        v = r + u
        return v + v * self.mamba_gate(r)


class MambaGateSR(nnx.Module):
    """MambaGate-SR: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        d_state: States per channel of the Mamba layers.
        scale: Upscaling factor.
    """

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 48, d_state: int = 16, scale: int = 4):
        self.scale = scale
        self.conv_1 = Conv3XCWithBranches(3, channels, rngs=rngs)
        self.block_1, self.block_2, self.block_3, self.block_4, self.block_5, self.block_6 = (
            MGAB(channels, d_state, rngs=rngs) for _ in range(6)
        )
        self.conv_cat = Conv2d(4 * channels, channels, 1, rngs=rngs)
        self.conv_2 = Conv3XCWithBranches(channels, channels, rngs=rngs)
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        shallow = self.conv_1(x - rgb_mean(x))
        first = features = self.block_1(shallow)
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            features = block(features)
        last = self.conv_2(self.block_6(features))
        features = self.conv_cat(jnp.concatenate([shallow, last, first, features], -1))
        return pixel_shuffle(self.upsampler(features), self.scale)


METHOD = Method(
    network=MambaGateSR,
    team="CUIT HTT",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, MambaGate-SR",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    needs_full_image=True,
    weights={
        "seed0": Weights(
            sha256="5ab9eccdf4d378b1d8b5de5401a20ac1218364226961d8dccffea6cc9c611647",
            tensors_sha256="ac1c2aab47e4e01bc7afbe2ebfe507d6bb930e3f3c14a190368b619e809b0938",
        )
    },
    torch_names=spab.TORCH_NAMES,
    cost_options=CostOptions(
        excluded={
            f"*.mamba.{layer}": "inside of Mamba's fused kernel"
            for layer in ("conv1d", "x_proj", "dt_proj", "out_proj")
        }
    ),
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
