"""PDS: SPANF with 20 instead of 32 channels behind the fusion, by BOE AIoT.

The network is SPANF's. Of its trained weights everything up to the fusion is kept; the fusion and
the last convolution are made narrower and trained again, by distillation.

Report and code differ: the report speaks of a pruned final layer and of fine-tuning the model; the
weights say that it is the width between fusion and last convolution, and that only these two moved
(31 of 35 tensors are SPANF's, bit for bit). The 20 channels are no choice among SPANF's 32.
Recipe: SPANF's weights, the tail anew, all else frozen; DIV2K + LSDIR, patches of 256, batch 16,
flips and turns, Adam, L1 and distillation (teacher and its weight unsaid; SPANF by context). Rate,
schedule and length are unsaid. A good start for the tail is the best approximation of SPANF's own,
as one map of 112 to 48 channels, by 20 channels in between.
"""

from flax import nnx

from esrjax.method import Method, Weights

from .parts.sources import esr2026
from .parts.spab import TORCH_NAMES
from .spanf import SPANF


class PDS(SPANF):
    """SPANF of `channels` features, `tail` of them behind the fusion, x`scale`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 32, tail: int = 20, scale: int = 4):
        super().__init__(rngs=rngs, channels=channels, tail=tail, scale=scale)


METHOD = Method(
    network=PDS,
    team="BOE AIoT",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, team BOE AIoT",
    license="MIT",
    card=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="6196a5e03e7d3fb58e3c35427bdd00290e693c8b530f5f8573108e517b9ade46",
            url=esr2026("team01_PDS.pth"),
        )
    },
    pretrained="esrjax_plugins.pretrained:pds.safetensors",
    torch_names={
        "conv_cat_1.{leaf}": "conv_cat.{leaf}",
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
