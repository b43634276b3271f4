"""An ensemble is what PyTorch's was: branch by branch, in bytes, ties apart."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import esrjax
from esrjax import registry
from esrjax.bridge import ensemble
from esrjax.bridge.golden import BadGolden
from esrjax.method import Ensemble, Member
from esrjax.model import Fusion, Model
from esrjax.network.archive import Checkpoint
from esrjax.pictures.metrics import quantise

LR = np.random.default_rng(0).integers(0, 256, (16, 19, 3), np.uint8)


def nchw(picture):
    return picture.astype(np.float32).transpose(2, 0, 1)[None]


@pytest.fixture
def golden(crumbs, tmp_path):
    """Writes what the third-party ensemble gives, with changes: `golden(y0=...) -> path`."""

    def write(**changes):
        fusion = esrjax.load("crumbs")
        crumb, loaf = (run(LR) for run in fusion.upscalers().values())
        arrays = {
            "x0": nchw(LR) / np.float32(255),
            "y0": nchw(fusion(LR)),
            "crumb_u8_0": nchw(quantise(crumb, 1.0)),
            "act_loa_tta0": nchw(loaf),
            "note": np.zeros(1),
        }
        np.savez(tmp_path / "golden.npz", **{**arrays, **changes})
        return tmp_path / "golden.npz"

    return write


def test_branches_and_what_they_are_fused_to_are_compared(esrjax, golden):
    said = esrjax("parity", "crumbs", "--golden", golden(), "--json")
    assert said.code == 0 and said.json["passed"] is True
    assert [case["case"] for case in said.json["cases"]] == ["y0", "act_loa_tta0", "crumb_u8_0"]
    assert [case["changed"] for case in said.json["cases"]] == [0, 0, 0]
    assert said.json["unchecked"] == ["note"]


@pytest.mark.parametrize(("levels", "values", "passed"), [(1, 14, True), (1, 15, False), (2, 1, 0)])
def test_a_thousandth_of_the_bytes_may_be_one_level_off(golden, levels, values, passed):
    theirs = np.load(golden())["y0"].copy()
    assert theirs.size == 14_592  # of which 14 are a thousandth
    theirs.reshape(-1)[:values] += levels * np.where(theirs.reshape(-1)[:values] > 99, -1, 1)
    found = ensemble.parity(esrjax.load("crumbs"), golden(y0=theirs))
    assert found.verdicts == {"y0": bool(passed), "act_loa_tta0": True, "crumb_u8_0": True}
    assert (found.cases[0].changed, found.cases[0].changed_as_is) == (values, None)


def test_a_file_of_something_else_is_refused(golden):
    fusion = esrjax.load("crumbs")
    with pytest.raises(BadGolden, match="'bread' begins the name of 0 members"):
        ensemble.parity(fusion, golden(bread_u8_0=np.zeros(1)))
    with pytest.raises(BadGolden, match="no 8-bit picture"):
        ensemble.parity(fusion, golden(x0=np.full((1, 3, 6, 7), 0.3, np.float32)))
    with pytest.raises(BadGolden, match="which is"):
        ensemble.parity(fusion, golden(y0=np.zeros((1, 3, 8, 8))))


class Coin(nnx.Module):
    """The top of the picture is white or less, as its first value lies above a fifth or not."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.at = nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        y = x.repeat(4, 1).repeat(4, 2)
        return y.at[:, :4].set(jnp.where(x[:, :1, :1, :1] > 51 / 255, 1.0, 0.9))


@pytest.mark.parametrize(("level", "theirs_at_top", "passed"), [(51, 255, True), (60, 230, False)])
def test_a_tie_is_told_from_a_difference(tmp_path, crumbs, level, theirs_at_top, passed):
    method = dataclasses.replace(registry.plain("crumb"), network=Coin)
    net = Coin(rngs=nnx.Rngs(0))
    model = Model(name="coin", method=method, net=net, checkpoint=Checkpoint)
    coins = Ensemble(members={"coin": Member()}, team="", paper="", license="")
    fusion = Fusion(name="coins", ensemble=coins, members={"coin": model})
    lr = np.full((8, 8, 3), 40, np.uint8)
    lr[0, 0] = level
    theirs = nchw(fusion(lr))
    assert abs(theirs[0, 0, 0, 0] - theirs_at_top) > 20
    theirs[:, :, :4] = theirs_at_top
    np.savez(tmp_path / "tie.npz", x0=nchw(lr) / np.float32(255), y0=theirs)
    (case,) = ensemble.parity(fusion, tmp_path / "tie.npz").cases
    assert case.passed is passed
    assert case.changed_as_is == (3 * 4 * 32 if passed else None)
