"""EMSR: winner of the 2025 challenge (there as DSCF), SPAN with 26 channels.

The network is SPAN's. Its quality comes from its training (DSCLoRA): the kernels of a trained
network are frozen and low-rank adapters are trained, with distillation from a wider teacher whose
outputs and pixel affinities are matched. The adapters are merged into the kernels.

Report and code differ: the 2026 report distills from an EMSR of 30 channels, but only the one of 26
was published (the wider one is `channels=30`). What it calls depthwise convolutions are dense.

Training recipe: adapters of rank 2 (alpha 4) on the blocks, of rank 8 (alpha 16) on `conv_2` and
the upsampler in the commented-out code of the released file (`esrjax.nn.lora.add_lora` after
`deploy`); losses of reconstruction, teacher output and spatial affinity. All else is unspecified.
"""

from flax import nnx

from esrjax.method import Method, Weights

from .blocks.common import ntire2025_url
from .blocks.spab import TORCH_NAMES
from .span import SPAN


class EMSR(SPAN):
    """SPAN with 26 channels: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 26, scale: int = 4):
        super().__init__(rngs=rngs, channels=channels, scale=scale)


METHOD = Method(
    network=EMSR,
    team="EMSR",
    paper="https://arxiv.org/abs/2504.11271",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2025": Weights(
            sha256="239e76bc4e4e738491c3963805c0a79f524400acf5fbde34b2cb1a855dd62cb1",
            tensors_sha256="ca4ede0aaadd9d2538b7ebe7ba76766abdcadb9bc43bf48ef8b94c8e1f841f79",
            url=ntire2025_url("team23_DSCF.pth"),
        )
    },
    torch_names=TORCH_NAMES,
    reported={
        "params": 130_828,
        "macs": 8_535_015_424,
        "activations": 38_928_384,
        "convs": 22,
        "psnr_valid": 26.92,
    },
)
