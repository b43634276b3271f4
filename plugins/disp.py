"""DISP: TSSR's network, entered by team DISP.

A residual network of four blocks of four 3x3 convolutions with 32 channels. The teacher that the
report distills from has 64 channels (`channels=64`).

Report and code differ: the report calls the network inspired by TSSR, but network and weights are
TSSR's (tensors equal to 2e-5), so the described training in four steps has left no trace in the
checkpoint. The train form is unspecified beyond "re-parameterisation"; SPAN's multi-branch
convolutions are used, as the names of the tensors suggest. The teacher is taken to be the same
network with twice the channels.

Training recipe of the report: teacher 100 epochs, student 50 epochs, both with L1, 5e-5 with cosine
decay, HR patches of 256; distillation by affinity and L1, 100 epochs, 1e-4 with cosine decay;
fine-tuning on patches of 512 at 1e-5; batch size 32, DIV2K + LSDIR. Unspecified: optimizer, end
value of the cosine, weights and layers of the distillation, its patches and batch size, samples per
epoch, augmentation, loss and length of the last step.
"""

from esrjax.method import Method, Weights

from .blocks.common import ntire2026_url
from .tssr import TORCH_NAMES, TSSR

METHOD = Method(
    network=TSSR,
    team="DISP",
    paper="NTIRE 2026 Efficient Super-Resolution challenge report, section 4.13",
    license="MIT",
    scales=(2, 3, 4),
    description=__doc__,
    weights={
        "ntire2026": Weights(
            sha256="b53944ab3a6ab63d5004f5dd0fae3d76cc7d308f2145942d0e41211aaf9225bf",
            tensors_sha256="ded7ac1b250107f8b67407dcc329f988fb37231a5aa839bd7932388fffc7a2f1",
            url=ntire2026_url("team18_DISP.pth"),
        )
    },
    torch_names=TORCH_NAMES,
    reported={
        "params": 163_792,
        "macs": 10_693_378_048,
        "activations": 40_894_464,
        "convs": 19,
        "psnr_valid": 26.90,
        "psnr_test": 27.02,
        "runtime_ms": 6.444,
    },
)
