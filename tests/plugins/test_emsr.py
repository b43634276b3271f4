"""EMSR: SPAN in another width, so sensitive far from photographs that rounding shows."""

import pytest

from esrjax.bridge.golden import TOLERANCE, parity
from esrjax.model import open_method


def test_on_noise_it_is_judged_in_double_precision_where_float32_is_not_enough(reference):
    golden = reference / "golden" / "emsr.npz"
    if not golden.is_file():
        pytest.skip("no reference folder: it holds no golden of emsr")
    model = open_method("emsr", reference / "weights" / "team23_DSCF.pth")
    found = {case.case: case for case in parity("emsr", model.method, model.net, golden).cases}
    assert found["y0"].precision == "float32" and found["y0"].max_abs < TOLERANCE / 10
    assert found["y1"].passed and found["y1"].max_abs < found["y1"].allowed
    judged = found["y1"].precision  # by a hair: it hangs on the order in which a machine adds
    assert judged == "float32" or found["y1"].float32_max_abs > found["y1"].allowed
