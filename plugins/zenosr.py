"""ACN: the adaptive calibration network of ZenoSR, the smallest of the 2026 challenge.

DAN with four blocks of 18 channels instead of six of 16; what the blocks give is weighed channel
by channel with learned factors before it is fused.

    x − mean ─ to_feat ─┬─ B1 … B4 ─ weighed ─ fuse ─ + ─ to_img ─ shuffle ─ refine ─ + mean
                        └─────────────────────────────┘

Channel attention is over whole patches in training and over overlapping windows of 72 pixels
otherwise; the patches of its first two stages are one window.
Report and code agree in what the report tells; it leaves out the convolutions after the shuffle,
the mean, the sum with the first features, and the windows. The factors are numbered 5 to 8 in the
code and belong to blocks 1 to 4.
Recipe: Adam, five stages of 800k steps, batch 64: HR patches of 288, 288, 384, 384, 512; L1 and a
frequency loss in the first three, frequency alone in the fourth, L2 in the last; rates 2e-3, 2e-3,
1e-3, 5e-4, 2e-4, lowered after 200k, 400k, 600k, 700k steps. DIV2K with 10k of LSDIR, from the
third stage on with all of it. Unsaid: the factor of lowering, the frequency loss and its weight,
augmentation, how stages start, the averaging of weights.
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.network.layers import parameter

from .dan import DAN
from .dan import METHOD as BASE
from .parts.sources import esr2026


class ACN(DAN):
    """ACN of `channels` features in `blocks` blocks, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 18, blocks: int = 4, scale: int = 4):
        super().__init__(rngs=rngs, channels=channels, blocks=blocks, scale=scale)
        for i in range(blocks):
            factors = parameter(jnp.ones((1, 1, 1, channels)), torch_axes=(0, 3, 1, 2))
            setattr(self, f"alpha_{i + 5}", factors)

    def stages(self, x: Array) -> list[Array]:
        """What each block makes of the one before it, times its factors."""
        found = super().stages(x)
        return [getattr(self, f"alpha_{i + 5}")[...] * stage for i, stage in enumerate(found)]


METHOD = Method(
    network=ACN,
    team="ZenoSR",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report",
    license="MIT",
    card=__doc__,
    min_side=8,
    whole_picture=True,
    weights={
        "ntire2026": Weights(
            sha256="cb09f1467d13edf3bab23c39abaee8c0e04f1ba445bd3f5c3d4f5c015d63171a",
            url=esr2026("team04_ZenoSR.pth"),
            root="params_ema",
            beside=("params",),
        )
    },
    torch_names=BASE.torch_names,
    uncounted=BASE.uncounted,
    reported={
        "params": 37_786,
        "macs": 2_681_118_720,
        "activations": 153_821_184,
        "convs": 102,
        "psnr_valid": 26.90,
        "psnr_test": 27.01,
        "runtime_ms": 48.144,
    },
)
