"""RFDN_SPAN: RFDN's feature distillation with SPAN's attention, by IN2GM.

Four blocks, 46 wide. In a block three refining convolutions follow each other; before each, and
after the last, a part of the features is put aside, and these parts together make what SPAN's
attention, in the place of RFDN's, gates the block with.

    x ─ head ─┬─ block_1 … block_4 ─ all four ─ gather ─ tail ─ + ─ upsampler ─ shuffle
              └─────────────────────────────────────────────────┘

Report and code differ: that the attention also holds a residual is in code and figure alone, and
the code's distillation rate of a quarter has no effect: half of the channels are put aside. The
test PSNR of 26.98 dB is below the floor of 26.99, yet the method is ranked.
The train form is the deploy form.
Recipe: patches of 256, 384 and 512 (HR presumably), batch 64, Adam, 5e-4 (last stage 2e-4) halved
every 200k steps, flips and turns, DIV2K + LSDIR. Losses and lengths are unsaid; so is the moving
average, whose weights were evaluated.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import Conv2d, Sequential
from esrjax.network.words import pixel_shuffle

from .parts.sources import esr2026
from .parts.spab import attention


def _leaky(x: Array) -> Array:
    return jax.nn.leaky_relu(x, 0.05)


class RFDB(nnx.Module):
    """`u -> attention(h, u)`: `h` of half the channels, put aside at each of four depths."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        part = channels // 2
        self.distill_1, self.distill_2, self.distill_3 = (
            Conv2d(channels, part, 1, rngs=rngs) for _ in range(3)
        )
        self.refine_1, self.refine_2, self.refine_3 = (
            Conv2d(channels, channels, rngs=rngs) for _ in range(3)
        )
        self.distill_4 = Conv2d(channels, part, rngs=rngs)
        self.gather = Conv2d(4 * part, channels, 1, rngs=rngs)

    def __call__(self, u: Array) -> Array:
        r, aside = u, list[Array]()
        for distill, refine in (
            (self.distill_1, self.refine_1),
            (self.distill_2, self.refine_2),
            (self.distill_3, self.refine_3),
        ):
            aside.append(_leaky(distill(r)))
            r = _leaky(refine(r) + r)
        aside.append(_leaky(self.distill_4(r)))
        return attention(self.gather(jnp.concatenate(aside, -1)), u)


class RFDNSPAN(nnx.Module):
    """RFDN of `channels` features with SPAN's attention, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 46, scale: int = 4):
        self.scale = scale
        self.head = Conv2d(3, channels, rngs=rngs)
        self.block_1, self.block_2, self.block_3, self.block_4 = (
            RFDB(channels, rngs=rngs) for _ in range(4)
        )
        self.gather = Conv2d(4 * channels, channels, 1, rngs=rngs)
        self.tail = Conv2d(channels, channels, rngs=rngs)
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        features = head = self.head(x)
        found = list[Array]()
        for block in (self.block_1, self.block_2, self.block_3, self.block_4):
            features = block(features)
            found.append(features)
        gathered = _leaky(self.gather(jnp.concatenate(found, -1)))
        return pixel_shuffle(self.upsampler(self.tail(gathered) + head), self.scale)


METHOD = Method(
    network=RFDNSPAN,
    team="IN2GM",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, team IN2GM",
    license="MIT",
    card=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="6644ee4bf292f3dda399e382fe0a2e9c97cb222ff5f2057dc0389541a9f21dad",
            url=esr2026("team09_RFDN_SPAN.pth"),
            root="params_ema",
            beside=("params",),
        )
    },
    torch_names={
        "fea_conv.{leaf}": "head.{leaf}",
        "B{i}.c4.{leaf}": "block_{i}.distill_4.{leaf}",
        "B{i}.c5.{leaf}": "block_{i}.gather.{leaf}",
        "B{i}.c{j}_d.{leaf}": "block_{i}.distill_{j}.{leaf}",
        "B{i}.c{j}_r.{leaf}": "block_{i}.refine_{j}.{leaf}",
        "B{i}": "block_{i}",
        "c.0.{leaf}": "gather.{leaf}",
        "LR_conv.{leaf}": "tail.{leaf}",
    },
    reported={
        "params": 346_152,
        "macs": 22_600_876_032,
        "activations": 84_541_440,
        "convs": 36,
        "psnr_valid": 26.91,
        "psnr_test": 26.98,
        "runtime_ms": 16.640,
    },
)
