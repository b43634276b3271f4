"""Every official network of which outputs are at hand, against ours."""

import os
import sys
from pathlib import Path

import pytest

from esrjax import registry

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from parity import officials

REFERENCE = os.environ.get("ESRJAX_REFERENCE")
OFFICIALS = list(officials(Path(REFERENCE))) if REFERENCE else []


@pytest.mark.parametrize("official", OFFICIALS, ids=lambda official: official.golden.stem)
def test_outputs_and_activations_are_those_of_pytorch(official):
    outcome = official.compare()
    assert outcome.passed, [case for case in outcome.cases if not case.passed]


def test_no_method_with_published_weights_goes_unchecked(reference):
    published = {n for n in registry.names() if getattr(registry.method(n), "weights", None)}
    assert published == {official.method for official in OFFICIALS}
