"""RFDN_SPAN: RFDN's feature distillation with SPAN's attention, by team IN2GM.

Four blocks with 46 channels. In a block three refining convolutions follow each other; before each,
and after the last, half as many channels are distilled. SPAN's parameter-free attention, in the
place of RFDN's, gates the block with a 1x1 convolution of the distilled features.

    x ─ fea_conv ─┬─ B1 … B4 ─ all four ─ c ─ LR_conv ─ + ─ upsampler ─ shuffle
                  └─────────────────────────────────────┘

Report and code differ: that the attention also contains a residual is only in the code and the
figure. The code's distillation rate of a quarter has no effect: half of the channels are distilled.
The test PSNR of 26.98 dB is below the threshold of 26.99, yet the method is ranked. The train form
is the deploy form.

Training recipe of the report: patches of 256, 384 and 512 (HR presumably), batch size 64, Adam,
5e-4 (last stage 2e-4) halved every 200k steps, flips and rotations, DIV2K + LSDIR. Unspecified:
losses, lengths and the EMA, whose weights were evaluated.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.functional import pixel_shuffle
from esrjax.nn.layers import Conv2d, Sequential

from .blocks.common import ntire2026_url
from .blocks.spab import parameter_free_attention


def _leaky_relu(x: Array) -> Array:
    return jax.nn.leaky_relu(x, 0.05)


class RFDB(nnx.Module):
    """Residual feature distillation block: `u -> parameter_free_attention(h, u)`.

    Maps `(N, h, w, C)` to the same shape; `h` is a 1x1 convolution of `C / 2` channels distilled at
    each of four depths.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        distilled_channels = channels // 2
        self.c1_d, self.c2_d, self.c3_d = (
            Conv2d(channels, distilled_channels, 1, rngs=rngs) for _ in range(3)
        )
        self.c1_r, self.c2_r, self.c3_r = (Conv2d(channels, channels, rngs=rngs) for _ in range(3))
        self.c4 = Conv2d(channels, distilled_channels, rngs=rngs)
        self.c5 = Conv2d(4 * distilled_channels, channels, 1, rngs=rngs)

    def __call__(self, u: Array) -> Array:
        r, distilled = u, list[Array]()
        for distill, refine in (
            (self.c1_d, self.c1_r),
            (self.c2_d, self.c2_r),
            (self.c3_d, self.c3_r),
        ):
            distilled.append(_leaky_relu(distill(r)))
            r = _leaky_relu(refine(r) + r)
        distilled.append(_leaky_relu(self.c4(r)))
        return parameter_free_attention(self.c5(jnp.concatenate(distilled, -1)), u)


class RFDNSPAN(nnx.Module):
    """RFDN_SPAN: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`.

    Args:
        channels: Channels of the features.
        scale: Upscaling factor.
    """

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 46, scale: int = 4):
        self.scale = scale
        self.fea_conv = Conv2d(3, channels, rngs=rngs)
        self.B1, self.B2, self.B3, self.B4 = (RFDB(channels, rngs=rngs) for _ in range(4))
        self.c = Sequential([Conv2d(4 * channels, channels, 1, rngs=rngs), _leaky_relu])
        self.LR_conv = Conv2d(channels, channels, rngs=rngs)
        self.upsampler = Sequential([Conv2d(channels, 3 * scale**2, rngs=rngs)])

    def __call__(self, x: Array) -> Array:
        features = shallow = self.fea_conv(x)
        block_outputs = list[Array]()
        for block in (self.B1, self.B2, self.B3, self.B4):
            features = block(features)
            block_outputs.append(features)
        fused = self.c(jnp.concatenate(block_outputs, -1))
        return pixel_shuffle(self.upsampler(self.LR_conv(fused) + shallow), self.scale)


METHOD = Method(
    network=RFDNSPAN,
    team="IN2GM",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, team IN2GM",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="6644ee4bf292f3dda399e382fe0a2e9c97cb222ff5f2057dc0389541a9f21dad",
            tensors_sha256="3834f1408a89bca18cc5253d03c8a0f9a2d846cdf5421ee136665532fc6a552f",
            url=ntire2026_url("team09_RFDN_SPAN.pth"),
            state_dict_key="params_ema",
            other_keys=("params",),
        )
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
