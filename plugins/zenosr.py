"""ACN: the adaptive calibration network of team ZenoSR, the smallest of the 2026 challenge.

DAN with four blocks of 18 channels instead of six of 16. The outputs of the blocks are scaled by
learned per-channel factors before they are fused.

    x − mean ─ to_feat ─┬─ B1 … B4 ─ scaled ─ fuse ─ + ─ to_img ─ shuffle ─ refine ─ + mean
                        └────────────────────────────┘

Channel attention covers the whole patch in training and overlapping windows of 72 pixels in
evaluation; the patches of its first two training stages are one window.

Report and code agree in what the report says; it leaves out the convolutions after the shuffle, the
mean, the sum with the first features, and the windows. The factors are numbered 5 to 8 in the code
and belong to blocks 1 to 4.

Training recipe of the report: Adam, five stages of 800k steps, batch size 64: HR patches of 288,
288, 384, 384, 512; L1 and a frequency loss in the first three, the frequency loss alone in the
fourth, L2 in the last; learning rates 2e-3, 2e-3, 1e-3, 5e-4, 2e-4, lowered after 200k, 400k, 600k,
700k steps. DIV2K with 10k images of LSDIR, from the third stage on with all of it. Unspecified: the
decay factor, the frequency loss and its weight, augmentation, the initialization and the optimizer
of later stages, EMA.
"""

import numpy as np
from flax import nnx
from jax import Array

from esrjax.method import Method, Weights
from esrjax.nn.layers import param

from .blocks.common import ntire2026_url
from .dan import DAN
from .dan import METHOD as DAN_METHOD


class ACN(DAN):
    """ACN: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`; arguments as `DAN`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 18, num_blocks: int = 4, scale: int = 4):
        super().__init__(rngs=rngs, channels=channels, num_blocks=num_blocks, scale=scale)
        for i in range(num_blocks):
            factors = param(np.ones((1, 1, 1, channels)), torch_axes=(0, 3, 1, 2))
            setattr(self, f"alpha_{i + 5}", factors)

    def block_outputs(self, x: Array) -> list[Array]:
        """Return the outputs of all blocks, each applied to the one before, times their factors."""
        outputs = super().block_outputs(x)
        return [getattr(self, f"alpha_{i + 5}")[...] * output for i, output in enumerate(outputs)]


METHOD = Method(
    network=ACN,
    team="ZenoSR",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    test_hparams={"num_blocks": 1},
    min_side=8,
    needs_full_image=True,
    weights={
        "ntire2026": Weights(
            sha256="cb09f1467d13edf3bab23c39abaee8c0e04f1ba445bd3f5c3d4f5c015d63171a",
            tensors_sha256="19ff3b4cf8cb58bf8ef7f7b1e22517234f4d371a68962d8103f687ab524d3101",
            url=ntire2026_url("team04_ZenoSR.pth"),
            state_dict_key="params_ema",
            other_keys=("params",),
        )
    },
    torch_names=DAN_METHOD.torch_names,
    cost_options=DAN_METHOD.cost_options,
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
