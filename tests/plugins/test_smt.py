"""SMT: two networks, each over eight turns, fused as the team's script fuses them."""

import numpy as np
import pytest

import esrjax
from esrjax import registry
from esrjax.contest.costs import costs
from esrjax.model import open_method
from esrjax.pictures.metrics import quantise

MEMBERS = ("hat", "mambairv2")


@pytest.fixture
def files(reference):
    return {name: reference / f"weights/{name}_tiny.safetensors" for name in MEMBERS}


def test_it_is_two_members_without_published_weights():
    smt = registry.method("smt")
    assert tuple(smt.members) == MEMBERS and smt.fusion == "adaptive"
    assert list(smt.members["mambairv2"].windows) == [100, 200, 300, 400, 500]
    assert smt.reported["params"] == sum(registry.plain(m).reported["params"] for m in MEMBERS)


def test_tiny_weights_are_recognised_by_what_is_in_the_file(files):
    for name, file in files.items():
        assert dict(open_method(name, file).sizes) == registry.plain(name).weights["tiny"].sizes
    drawn = esrjax.load("smt", files, **{"mambairv2.noise": True})
    assert drawn.members["mambairv2"].sizes["noise"] is True
    assert "noise" not in drawn.members["hat"].sizes


def test_its_bytes_are_half_of_each_members_rounded_down(files):
    smt, lr = esrjax.load("smt", files), np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    one, other = (quantise(run(lr), 1.0).astype(int) for run in smt.upscalers().values())
    assert np.abs(one - other).max() > 1
    np.testing.assert_array_equal(smt(lr), (one + other) // 2)
    np.testing.assert_array_equal(np.rint(smt.upscaler()(lr) * 255), (one + other) // 2)


@pytest.mark.slow
def test_it_makes_the_pictures_that_the_official_script_made(esrjax, reference, files):
    words = [w for name, file in files.items() for w in ("--checkpoint", f"{name}={file}")]
    said = esrjax("parity", "smt", *words, "--golden", reference / "golden/smt.npz", "--json")
    assert said.code == 0 and said.json["passed"] is True and said.json["unchecked"] == []
    assert len(said.json["cases"]) == 8
    ties = [case["case"] for case in said.json["cases"] if case["changed_as_is"]]
    assert set(ties) <= {"mamba_u8_3"}


@pytest.mark.slow
def test_its_costs_are_those_of_all_passes():
    counted, reported = costs("smt"), registry.method("smt").reported
    assert {key: getattr(counted, key) for key in reported} == dict(reported)
