"""EMSR: SPAN with another width, so sensitive on noise that float32 rounding matters."""

import pytest

from esrjax.inference import open_method
from esrjax.interop.array_diff import FLOAT32_RTOL
from esrjax.interop.parity import compare


def test_noise_is_compared_in_double_precision_where_float32_is_not_enough(reference):
    golden = reference / "golden" / "emsr.npz"
    if not golden.is_file():
        pytest.skip("the reference folder has no golden of emsr")
    model = open_method("emsr", reference / "weights" / "team23_DSCF.pth")
    diffs = {case.name: case for case in compare("emsr", model.method, model.net, golden).diffs}
    assert diffs["y0"].precision == "float32" and diffs["y0"].max_abs_diff < FLOAT32_RTOL / 10
    assert diffs["y1"].passed and diffs["y1"].max_abs_diff < diffs["y1"].tolerance
    precision = diffs["y1"].precision  # a close call: it depends on the order of float32 sums
    assert precision == "float32" or diffs["y1"].float32_max_abs_diff > diffs["y1"].tolerance
