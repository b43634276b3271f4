"""PKDSR: SPANF with 24 instead of 32 channels behind the fusion, by the team of that name.

The network is SPANF's. It is pruned in two steps of four channels, and each step is distilled from
the unpruned network.

Report and code agree. The report does not say which channels went: the weights show that the first
24 were kept, whatever their size, and that all else moved a little, the near branch included.
Recipe: 32 channels as SPANF (5e-4, implied); 28 for 50k steps, 24 for 100k; Adam (0.9, 0.99),
1e-4 to 1e-7 by cosine with restarts, L1 to the teacher plus L1 to HR; DIV2K + LSDIR. The report
leaves unsaid whether the second teacher is the 32 or the 28 wide one, patches, batch, augmentation
and the decay of the moving average that the file holds.
"""

from flax import nnx

from esrjax.method import Method, Weights

from .parts.sources import esr2026
from .parts.spab import TORCH_NAMES
from .spanf import SPANF


class PKDSR(SPANF):
    """SPANF of `channels` features, `tail` of them behind the fusion, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 32, tail: int = 24, scale: int = 4):
        super().__init__(rngs=rngs, channels=channels, tail=tail, scale=scale)


METHOD = Method(
    network=PKDSR,
    team="PKDSR",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.3",
    license="MIT",
    card=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="737fb4bb122c8dcdc0e3b6864d420819206ef7260e90b4a3e984c40c64e56d24",
            url=esr2026("team16_PKDSR.pth"),
            root="params_ema",
            beside=("params",),
        )
    },
    torch_names=TORCH_NAMES,
    reported={
        "params": 143_928,
        "macs": 9_396_289_536,
        "activations": 39_321_600,
        "convs": 18,
        "psnr_valid": 26.91,
        "psnr_test": 27.00,
        "runtime_ms": 6.758,
    },
)
