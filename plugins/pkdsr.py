"""PKDSR: SPANF with 24 instead of 32 channels after the fusion, by the team of that name.

The network is SPANF's. It is pruned in two steps of four channels, and each step is distilled from
the unpruned network.

Report and code agree. The report does not say which channels were removed: the weights show that
the first 24 were kept, whatever their norm, and that all other weights changed a little, the near
branch included.

Training recipe of the report: 32 channels as SPANF (5e-4, implied); 28 for 50k steps, 24 for 100k;
Adam (0.9, 0.99), 1e-4 to 1e-7 by cosine with restarts, L1 to the teacher plus L1 to HR; DIV2K +
LSDIR. Unspecified: whether the second teacher has 32 or 28 channels, patches, batch size,
augmentation and the decay of the EMA weights in the file.
"""

from flax import nnx

from esrjax.method import Method, Weights

from .blocks.common import ntire2026_url
from .blocks.spab import TORCH_NAMES
from .spanf import SPANF


class PKDSR(SPANF):
    """PKDSR: LR `(N, h, w, 3)` in [0, 1] to SR `(N, scale·h, scale·w, 3)`; arguments as `SPANF`."""

    def __init__(
        self, *, rngs: nnx.Rngs, channels: int = 32, tail_channels: int = 24, scale: int = 4
    ):
        super().__init__(rngs=rngs, channels=channels, tail_channels=tail_channels, scale=scale)


METHOD = Method(
    network=PKDSR,
    team="PKDSR",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.3",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="737fb4bb122c8dcdc0e3b6864d420819206ef7260e90b4a3e984c40c64e56d24",
            tensors_sha256="1b4870aff38120054b60b466225a5ad48cccd4469e7cd755d654d6950ec983eb",
            url=ntire2026_url("team16_PKDSR.pth"),
            state_dict_key="params_ema",
            other_keys=("params",),
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
