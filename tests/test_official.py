"""JAX networks reproduce all stored outputs and activations of official PyTorch networks."""

import os
import sys
from pathlib import Path

import pytest

from esrjax import registry
from esrjax.loading import load_network
from esrjax.nn.checkpoint_io import hash_tensors, read_checkpoint
from esrjax.nn.state_dict import KeyMap, to_state_dict

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from parity import official_cases

REFERENCE = os.environ.get("ESRJAX_REFERENCE")
OFFICIALS = list(official_cases(Path(REFERENCE))) if REFERENCE else []


# `make test` compares these with the golden files of their PyTorch twins (test_goldens.py), which
# are compared with the official code (test_twins.py); a network with local statistics, zenosr's;
# DWMamba's output, by tests/plugins/test_dwmamba.py.
SLOW = {"hfenet", "mambagate_sr", "mambagate_sr_acts", "safmn_deep15", "dan_tlc", "vscinet_tlc"}
SLOW |= {"dwmamba"}
SLOW_MARKS = (pytest.mark.slow, pytest.mark.platform_lowering)


@pytest.mark.parametrize(
    "official",
    [
        pytest.param(case, marks=SLOW_MARKS if case.golden.stem in SLOW else ())
        for case in OFFICIALS
    ],
    ids=lambda official: official.golden.stem,
)
def test_outputs_and_activations_agree_with_pytorch(official):
    comparison = official.compare()
    assert comparison.passed, [diff for diff in comparison.diffs if not diff.passed]


def test_every_method_with_published_weights_is_compared(reference):
    published = {n for n in registry.names() if getattr(registry.get_entry(n), "weights", None)}
    assert published == {official.method for official in OFFICIALS}


def test_published_tensors_have_the_hash_of_the_plugin(reference):
    """A conversion is recognized by it. The rest were compared when they were written."""
    method = registry.get_method("spanv2")
    file = read_checkpoint(reference / "weights/team22_spanv2_c2.pth")
    (weights,) = [w for w in method.weights.values() if w.sha256 == file.sha256]
    used = load_network("spanv2", method, file).net
    assert hash_tensors(to_state_dict(used, KeyMap(method.torch_names))) == weights.tensors_sha256
