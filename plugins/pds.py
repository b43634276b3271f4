"""PDS: SPANF with 20 instead of 32 channels after the fusion, by team BOE AIoT.

The network is SPANF's. Of its trained weights, everything up to the fusion is kept; the fusion and
the last convolution are made narrower and retrained with distillation.

Report and code differ: the report speaks of a pruned final layer and of fine-tuning the model; the
weights show that the channels between fusion and last convolution were reduced and that only these
two layers were trained (31 of 35 tensors are bit-exact SPANF's). The 20 channels are not a
selection of SPANF's 32.

Training recipe of the report: SPANF's weights with a pruned tail; DIV2K + LSDIR, patches of 256,
batch size 16, flips and rotations, Adam, L1 and distillation (teacher and loss weight unspecified;
SPANF by context). Learning rate, schedule and length are unspecified. The released weights show a
new tail, and that all else was frozen. A
good initialization of the tail is the best approximation, with 20 channels in between, of SPANF's
own tail as one linear map from 112 to 48 channels.
"""

from flax import nnx

from esrjax.method import Method, Weights

from .blocks.common import ntire2026_url
from .blocks.spab import TORCH_NAMES
from .spanf import SPANF


class PDS(SPANF):
    """PDS: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`; arguments as `SPANF`."""

    def __init__(
        self, *, rngs: nnx.Rngs, channels: int = 32, tail_channels: int = 20, scale: int = 4
    ):
        super().__init__(rngs=rngs, channels=channels, tail_channels=tail_channels, scale=scale)


METHOD = Method(
    network=PDS,
    team="BOE AIoT",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, team BOE AIoT",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="6196a5e03e7d3fb58e3c35427bdd00290e693c8b530f5f8573108e517b9ade46",
            tensors_sha256="a6fd1040a4d4efdb7ccbd83c786ae40cffb2c38313c1df203f87333367c2bc39",
            url=ntire2026_url("team01_PDS.pth"),
        )
    },
    pretrained="esrjax_plugins.pretrained:pds.safetensors",
    torch_names={
        "conv_cat_1": "conv_cat",
        "conv_2_1.eval_conv.{leaf}": "conv_2.{leaf}",
        **TORCH_NAMES,
    },
    reported={
        "params": 141_748,
        "macs": 9_253_683_200,
        "activations": 39_059_456,
        "convs": 18,
        "psnr_valid": 26.90,
        "psnr_test": 26.99,
        "runtime_ms": 6.724,
    },
)
