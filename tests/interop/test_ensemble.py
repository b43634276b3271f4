"""Images of an ensemble and its members equal PyTorch's, except where rounding decides ties."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from arrays import load_npz
from flax import nnx

import esrjax
from esrjax import registry
from esrjax.errors import UnreadableFile
from esrjax.evaluation.metrics import to_uint8
from esrjax.inference import EnsembleModel, Model
from esrjax.interop import ensemble
from esrjax.method import Ensemble, Member
from esrjax.nn.checkpoint_io import Checkpoint

LR = np.random.default_rng(0).integers(0, 256, (16, 19, 3), np.uint8)


def nchw(image):
    return image.astype(np.float32).transpose(2, 0, 1)[None]


@pytest.fixture
def golden(crumbs, tmp_path):
    """Write a golden file of the third-party ensemble's own images: `golden(y0=...) -> path`."""

    def write(**changes):
        model = esrjax.load("crumbs")
        crumb, loaf = (upscale(LR) for upscale in model.member_upscalers().values())
        arrays = {
            "x0": nchw(LR) / np.float32(255),
            "y0": nchw(model(LR)),
            "crumb_u8_0": nchw(to_uint8(crumb, 1.0)),
            "act_loa_tta0": nchw(loaf),
            "note": np.zeros(1),
        }
        np.savez(tmp_path / "golden.npz", **{**arrays, **changes})
        return tmp_path / "golden.npz"

    return write


def test_fused_and_member_images_are_compared(esrjax, golden):
    result = esrjax("parity", "crumbs", "--golden", golden(), "--json")
    assert result.code == 0 and result.json["passed"] is True
    assert [diff["name"] for diff in result.json["diffs"]] == ["y0", "act_loa_tta0", "crumb_u8_0"]
    assert [diff["num_changed_u8"] for diff in result.json["diffs"]] == [0, 0, 0]
    assert result.json["unchecked_keys"] == ["note"]


@pytest.mark.parametrize(
    ("levels", "num_values", "passed"), [(1, 14, True), (1, 15, False), (2, 1, 0)]
)
def test_a_thousandth_of_uint8_values_may_differ_by_one_level(golden, levels, num_values, passed):
    torch_image = load_npz(golden())["y0"].copy()
    assert torch_image.size == 14_592  # of which 14 are a thousandth
    torch_image.reshape(-1)[:num_values] += levels * np.where(
        torch_image.reshape(-1)[:num_values] > 99, -1, 1
    )
    comparison = ensemble.compare(esrjax.load("crumbs"), golden(y0=torch_image))
    assert comparison.checks == {"y0": bool(passed), "act_loa_tta0": True, "crumb_u8_0": True}
    assert (comparison.diffs[0].num_changed_u8, comparison.diffs[0].num_changed_u8_unperturbed) == (
        num_values,
        None,
    )


def test_unfitting_golden_file_is_refused(golden):
    model = esrjax.load("crumbs")
    with pytest.raises(UnreadableFile, match="'bread' is a prefix of 0 members"):
        ensemble.compare(model, golden(bread_u8_0=np.zeros(1)))
    with pytest.raises(UnreadableFile, match="not an 8-bit image"):
        ensemble.compare(model, golden(x0=np.full((1, 3, 6, 7), 0.3, np.float32)))
    with pytest.raises(UnreadableFile, match=r"y0 of shape \(1, 3, 8, 8\)"):
        ensemble.compare(model, golden(y0=np.zeros((1, 3, 8, 8))))


class ThresholdNet(nnx.Module):
    """The top of the image is 1.0 or 0.9, if the input's first value is above 51 / 255 or not."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.at = nnx.Param(jnp.zeros(()))

    def __call__(self, x):
        y = x.repeat(4, 1).repeat(4, 2)
        return y.at[:, :4].set(jnp.where(x[:, :1, :1, :1] > 51 / 255, 1.0, 0.9))


@pytest.mark.parametrize(("level", "torch_top", "passed"), [(51, 255, True), (60, 230, False)])
def test_tie_passes_and_difference_fails(tmp_path, crumbs, level, torch_top, passed):
    method = dataclasses.replace(registry.get_method("crumb"), network=ThresholdNet)
    net = ThresholdNet(rngs=nnx.Rngs(0))
    model = Model(name="threshold", method=method, net=net, checkpoint=Checkpoint)
    threshold_ensemble = Ensemble(members={"threshold": Member()}, team="", paper="", license="")
    ensemble_model = EnsembleModel(
        name="ensemble", ensemble=threshold_ensemble, members={"threshold": model}
    )
    lr = np.full((8, 8, 3), 40, np.uint8)
    lr[0, 0] = level
    torch_image = nchw(ensemble_model(lr))
    assert abs(torch_image[0, 0, 0, 0] - torch_top) > 20
    torch_image[:, :, :4] = torch_top
    np.savez(tmp_path / "tie.npz", x0=nchw(lr) / np.float32(255), y0=torch_image)
    (diff,) = ensemble.compare(ensemble_model, tmp_path / "tie.npz").diffs
    assert diff.passed is passed
    assert diff.num_changed_u8_unperturbed == (3 * 4 * 32 if passed else None)
