"""EMSR: winner of the 2025 challenge (there as DSCF), SPAN with 26 channels.

The network is SPAN's. It owes its quality to its training (DSCLoRA): the kernels of a trained
network are frozen and moved by low-rank adapters, under the eyes of a wider teacher, whose outputs
and affinities between pixels it imitates. The adapters merge into the kernels.

Report and code differ: the 2026 report distils from an EMSR of 30 channels; only the one of 26 was
ever published (the wider one is a size here: `channels=30`). What it calls depthwise convolutions
are dense.
Recipe: adapters of rank 2 (alpha 4) on the blocks, rank 8 (alpha 16) on `conv_2` and the upsampler
in what the released file has left as a comment (`esrjax.network.lora.adapt` after `deploy`); loss
of reconstruction, teacher's output and spatial affinity. All else is unsaid.
"""

from flax import nnx

from esrjax.method import Method, Weights

from .parts.sources import esr2025
from .parts.spab import TORCH_NAMES
from .span import SPAN


class EMSR(SPAN):
    """SPAN of `channels` features, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 26, scale: int = 4):
        super().__init__(rngs=rngs, channels=channels, scale=scale)


METHOD = Method(
    network=EMSR,
    team="EMSR",
    paper="https://arxiv.org/abs/2504.11271",
    license="MIT",
    card=__doc__,
    weights={
        "ntire2025": Weights(
            sha256="239e76bc4e4e738491c3963805c0a79f524400acf5fbde34b2cb1a855dd62cb1",
            url=esr2025("team23_DSCF.pth"),
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
