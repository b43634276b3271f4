"""Live PyTorch networks beside ours."""

from pathlib import Path

import pytest

from esrjax import registry
from esrjax.bridge.live import Match
from esrjax.bridge.peer import build, fill, source
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import scattered, tensors

TWINS = Path(__file__).parents[1] / "twins"
SMALL = {
    "span": {"channels": 6},
    "spanv2": {"channels": 8},
    "rfdn_span": {"channels": 8},
    "hfenet": {"channels": 9, "blocks": 1},
    "safmn_deep15": {"channels": 12, "blocks": 1},
    "mambagate_sr": {"channels": 5, "states": 3},
}


@pytest.fixture
def match():
    """Our network and its twin with the same weights: `match("span", form="train")`."""

    def make(name, form="deploy"):
        method = registry.plain(name)
        net = scattered(method.build(**SMALL[name]))
        net.eval()
        net = net if form == "train" else deploy(net)
        said = {"form": form} if name == "span" else {}
        peer = build(source(f"{TWINS / name}.py:Twin", SMALL[name] | said))
        fill(peer, tensors(net, Naming(method.torch_names)), method.unused, "drawn")
        return Match(name=name, method=method, net=net, form=form, peer=peer)

    return make


CRUMB = """
import torch
from torch import nn
from torch.nn import functional
{imports}

class Net(nn.Module):
    def __init__(self, side=3):
        super().__init__()
        self.filter = nn.Conv2d(3, 3, side, padding=side // 2, groups=3)
        {built}

    def forward(self, x):
        y = self.filter(x)
        {ran}
        return functional.pixel_shuffle(y.repeat_interleave(16, 1), 4)
"""


@pytest.fixture
def written(tmp_path):
    """The third-party method in PyTorch, with other lines: `written(ran="y = y * 2") -> path`."""

    def write(name="crumb.py", imports="", built="pass", ran="pass"):
        path = tmp_path / name
        path.write_text(CRUMB.format(imports=imports, built=built, ran=ran))
        return path

    return write
