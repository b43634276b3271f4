"""EMSR: SPAN in another width, so sensitive far from photographs that rounding shows."""

import pytest

from esrjax.bridge.parity import TOLERANCE, parity
from esrjax.model import open_method


def test_noise_is_allowed_what_rounding_does_to_it(reference):
    golden = reference / "golden" / "emsr.npz"
    if not golden.is_file():
        pytest.skip("no reference folder: it holds no golden of emsr")
    model = open_method("emsr", reference / "weights" / "team23_DSCF.pth")
    found = {case.case: case for case in parity("emsr", model.method, model.net, golden).cases}
    assert found["y0"].max_abs < 1e-5 and found["y0"].allowed == TOLERANCE
    assert found["y1"].passed and found["y1"].allowed > 1e-2
    assert found["y1"].max_abs < 1e-3 * 207  # of the range of that output
