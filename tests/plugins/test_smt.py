"""SMT: two networks, each with x8 self-ensemble, fused as the team's script does."""

import numpy as np
import pytest

import esrjax
from esrjax import registry
from esrjax.challenge.evaluate import method_cost
from esrjax.evaluation.metrics import to_uint8
from esrjax.inference import open_method

MEMBERS = ("hat", "mambairv2")


@pytest.fixture
def files(reference):
    return {name: reference / f"weights/{name}_tiny.safetensors" for name in MEMBERS}


def test_two_members_without_published_weights():
    smt = registry.get_entry("smt")
    assert tuple(smt.members) == MEMBERS and smt.fusion == "adaptive"
    assert list(smt.members["mambairv2"].windows) == [100, 200, 300, 400, 500]
    assert smt.reported["params"] == sum(
        registry.get_method(member).reported["params"] for member in MEMBERS
    )


def test_hparams_of_tiny_weights_are_recognized(files):
    for name, path in files.items():
        assert (
            dict(open_method(name, path).hparams)
            == registry.get_method(name).weights["tiny"].hparams
        )
    sampling = esrjax.load("smt", files, **{"mambairv2.eval_noise": True})
    assert sampling.members["mambairv2"].hparams["eval_noise"] is True
    assert "eval_noise" not in sampling.members["hat"].hparams


def test_fusion_is_the_rounded_down_mean_of_the_members(files):
    smt, lr = esrjax.load("smt", files), np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    hat_out, mambairv2_out = (
        to_uint8(upscale(lr), 1.0).astype(int) for upscale in smt.member_upscalers().values()
    )
    assert np.abs(hat_out - mambairv2_out).max() > 1
    np.testing.assert_array_equal(smt(lr), (hat_out + mambairv2_out) // 2)
    np.testing.assert_array_equal(np.rint(smt.upscaler()(lr) * 255), (hat_out + mambairv2_out) // 2)


@pytest.mark.slow
def test_images_equal_the_official_scripts(esrjax, reference, files):
    args = [arg for name, path in files.items() for arg in ("--checkpoint", f"{name}={path}")]
    result = esrjax("parity", "smt", *args, "--golden", reference / "golden/smt.npz", "--json")
    assert (
        result.code == 0 and result.json["passed"] is True and result.json["unchecked_keys"] == []
    )
    assert len(result.json["diffs"]) == 8
    ties = [diff["name"] for diff in result.json["diffs"] if diff["num_changed_u8_unperturbed"]]
    assert set(ties) <= {"mamba_u8_3"}


@pytest.mark.slow
def test_costs_are_those_of_all_passes():
    total, reported = method_cost("smt"), registry.get_entry("smt").reported
    assert {key: getattr(total, key) for key in reported} == dict(reported)
