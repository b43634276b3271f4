"""JAX networks reproduce all stored outputs and activations of official PyTorch networks."""

import os
import sys
from pathlib import Path

import pytest

from esrjax import registry

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from parity import official_cases

REFERENCE = os.environ.get("ESRJAX_REFERENCE")
OFFICIALS = list(official_cases(Path(REFERENCE))) if REFERENCE else []


@pytest.mark.parametrize("official", OFFICIALS, ids=lambda official: official.golden.stem)
def test_outputs_and_activations_agree_with_pytorch(official):
    comparison = official.compare()
    assert comparison.passed, [diff for diff in comparison.diffs if not diff.passed]


def test_every_method_with_published_weights_is_compared(reference):
    published = {n for n in registry.names() if getattr(registry.get_entry(n), "weights", None)}
    assert published == {official.method for official in OFFICIALS}
