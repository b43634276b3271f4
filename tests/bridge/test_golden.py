"""Parity is passed by PyTorch's numbers alone."""

import shutil

import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.bridge.case import TOLERANCE
from esrjax.bridge.golden import BadGolden, parity
from esrjax.method import Method
from esrjax.model import open_method
from esrjax.network import archive
from esrjax.network.layers import Conv2d
from esrjax.network.resampling import nearest
from esrjax.network.taps import taps

OFFICIAL = {"span": "team00_SPAN.pth", "spanv2": "team22_spanv2_c2.pth"}


@pytest.fixture
def golden(crumbs, tmp_path):
    """Writes what the third-party method gives, with changes: `golden(y0=...) -> path`."""

    def write(**changes):
        x = np.random.default_rng(0).random((1, 6, 7, 3), np.float32)
        y, parts = taps(open_method("crumb").net, x)
        arrays = {"x0": x, "y0": np.asarray(y), "act_filter": np.asarray(parts["filter"])}
        arrays = {key: value.transpose(0, 3, 1, 2) for key, value in arrays.items()} | changes
        np.savez(tmp_path / "golden.npz", **arrays)
        return tmp_path / "golden.npz"

    return write


def compared(path):
    return parity("crumb", registry.plain("crumb"), open_method("crumb").net, path)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_weights_give_what_pytorch_gave(esrjax, reference, name):
    words = ["--checkpoint", reference / "weights" / OFFICIAL[name]]
    said = esrjax("parity", name, *words, "--golden", reference / f"golden/{name}.npz", "--json")
    found = said.json
    assert said.code == 0 and found["passed"] is True
    assert found["method"] == name
    assert found["max_abs"] == max(case["max_abs"] for case in found["cases"])
    first = found["cases"][0]
    assert (first["case"], first["shape"]) == ("y0", [1, 3, 192, 256])
    assert first["max_abs"] < 1e-5
    assert {"y0", "y1", "act_block_1"} < {case["case"] for case in found["cases"]}
    assert found["unchecked"] == []


@pytest.mark.parametrize(
    "key", ["conv_near.weight", "block_3.guidance_map_conv.bias", "pointwise_conv.weight"]
)
def test_one_tensor_of_the_wrong_sign_does_not_pass(esrjax, reference, tmp_path, key):
    held = archive.read(reference / "weights" / OFFICIAL["spanv2"]).tensors
    archive.write_torch(tmp_path / "wrong.pth", {**held, key: -held[key]})
    words = ["--checkpoint", tmp_path / "wrong.pth"]
    said = esrjax("parity", "spanv2", *words, "--golden", reference / "golden/spanv2.npz", "--json")
    assert said.code == 1 and said.json["passed"] is False
    assert said.json["max_abs"] > 0.01


def test_a_golden_of_another_network_is_refused(esrjax, reference):
    words = ["--checkpoint", reference / "weights" / OFFICIAL["spanv2"]]
    said = esrjax("parity", "spanv2", *words, "--golden", reference / "golden/span.npz")
    assert said.code == 2 and "check that file and method belong together" in said.err


def test_our_own_golden_passes_and_says_what_was_compared(esrjax, golden):
    found = compared(golden(note=np.zeros(1)))
    assert found.passed
    assert [case.case for case in found.cases] == ["y0", "act_filter"]
    assert found.cases[0].shape == (1, 3, 24, 28)
    assert (found.cases[0].changed, found.cases[1].changed) == (0, None)
    assert found.unchecked == ("note",)
    table = esrjax("parity", "crumb", "--golden", golden(note=np.zeros(1)))
    assert table.code == 0
    assert table.out.endswith("not compared: note\ncrumb: equal to PyTorch\n")


@pytest.mark.parametrize(("distance", "passed"), [(0.9, True), (1.1, False)])
def test_the_tolerance_is_where_it_is_said_to_be(golden, distance, passed):
    y = np.load(golden())["y0"]
    moved = y.copy()
    moved[0, 0, 0, 0] += distance * TOLERANCE * max(1, np.ptp(y))
    assert compared(golden(y0=moved)).passed is passed


def test_a_wrong_part_is_told_from_a_right_output(golden):
    wrong = np.load(golden())["act_filter"] + 1
    found = compared(golden(act_filter=wrong))
    assert [case.passed for case in found.cases] == [True, False]
    assert not found.passed


class Headed(nnx.Module):
    """A picture four times as large, and one of the same size."""

    def __init__(self, *, rngs):
        self.head_1x = Conv2d(3, 3, rngs=rngs)

    def __call__(self, x):
        self.head_1x(x)
        return nearest(x, size=(4 * x.shape[1], 4 * x.shape[2]))


@pytest.mark.parametrize("moved", [0, 1])
def test_pictures_of_further_heads_are_compared(tmp_path, moved):
    net = Headed(rngs=nnx.Rngs(0))
    method = Method(network=Headed, team="", paper="", license="")
    x = np.random.default_rng(0).random((1, 6, 7, 3), np.float32)
    pictures = {"x0": x, "y0": net(x), "y0_1x": net.head_1x(x) + moved, "y0_noise": x}
    arrays = {key: np.asarray(y).transpose(0, 3, 1, 2) for key, y in pictures.items()}
    np.savez(tmp_path / "golden.npz", **arrays)
    found = parity("headed", method, net, tmp_path / "golden.npz")
    assert found.verdicts == {"y0": True, "y0_1x": not moved}
    assert found.unchecked == ("y0_noise",)


def test_weights_that_are_no_numbers_do_not_pass(esrjax, golden, crumbs, tmp_path):
    held = archive.read(crumbs / "crumbs/crumb.safetensors").tensors
    held["filter.bias"][0] = np.nan
    archive.write_torch(tmp_path / "nan.pth", held)
    said = esrjax(
        "parity", "crumb", "--checkpoint", tmp_path / "nan.pth", "--golden", golden(), "--json"
    )
    assert said.code == 1
    assert (said.json["passed"], said.json["max_abs"]) == (False, None)
    assert said.json["cases"][0]["changed"] == 3 * 24 * 28


def test_every_input_needs_a_file_that_holds_one(golden, tmp_path):
    path = golden()
    shutil.move(path, tmp_path / "moved.npz")
    with pytest.raises(BadGolden, match="cannot be read"):
        compared(path)
    np.savez(path, y0=np.zeros(1))
    with pytest.raises(BadGolden, match="no x0 with its y0"):
        compared(path)
