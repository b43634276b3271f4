"""Fixtures: pairs of a JAX and a PyTorch network, and files of PyTorch code."""

from pathlib import Path

import pytest

TWINS = Path(__file__).parents[1] / "twins"
WINDOWS = {"channels": 8, "num_groups": 1, "depth": 2, "num_heads": 2, "window_size": 4}
SMALL_HPARAMS = {
    "span": {"channels": 6},
    "spanv2": {"channels": 8},
    "rfdn_span": {"channels": 8},
    "hfenet": {"channels": 9, "num_blocks": 1},
    "safmn_deep15": {"channels": 12, "num_blocks": 1},
    "mambagate_sr": {"channels": 5, "d_state": 3},
    "hat": {**WINDOWS, "squeeze_factor": 4},
    "mambairv2": {**WINDOWS, "d_state": 3, "num_tokens": 5, "inner_rank": 2},
}


@pytest.fixture
def make_pair():
    """A JAX network and its PyTorch twin with random weights: `make_pair("span", "train")`."""
    pytest.importorskip("torch", reason="torch is not installed")
    from esrjax.interop import draws
    from esrjax.interop.torch_model import build, parse_source

    def make(name, form="deploy"):
        kwargs = {"form": form} if name == "span" else {}
        torch_model = build(parse_source(f"{TWINS / name}.py:Twin", SMALL_HPARAMS[name] | kwargs))
        return draws.make_pair(name, torch_model, SMALL_HPARAMS[name])

    return make


TORCH_CRUMB = """
import torch
from torch import nn
from torch.nn import functional
{imports}

class Net(nn.Module):
    def __init__(self, kernel_size=3):
        super().__init__()
        self.filter = nn.Conv2d(3, 3, kernel_size, padding=kernel_size // 2, groups=3)
        {init}

    def forward(self, x):
        y = self.filter(x)
        {forward}
        return functional.pixel_shuffle(y.repeat_interleave(16, 1), 4)
"""


@pytest.fixture
def write_torch_file(tmp_path):
    """Write the third-party method in PyTorch: `write_torch_file(forward="y = y * 2") -> path`.

    Args: imports, init and forward are lines inserted at the top, in `__init__` and in `forward`.
    """

    def write(name="crumb.py", imports="", init="pass", forward="pass"):
        path = tmp_path / name
        path.write_text(TORCH_CRUMB.format(imports=imports, init=init, forward=forward))
        return path

    return write
