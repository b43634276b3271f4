"""Models: loading of methods and ensembles, calling them on images, evaluation."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import esrjax
from esrjax import inference, loading, registry
from esrjax.data.image_io import write_image
from esrjax.data.resize import bicubic_downscale
from esrjax.errors import ImageTooSmall, InvalidArgument, NotFound, UserError, log_note
from esrjax.evaluation.metrics import to_uint8
from esrjax.method import Ensemble, Member, Method
from esrjax.nn import checkpoint_io
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, to_state_dict

NOISE = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)


@pytest.fixture
def weights(tmp_path):
    """Writes weights of SPANV2 with 4 channels, in either form: `weights(form, seed) -> path`."""

    def write(form="deploy", seed=0, has_metadata=True, channels=4):
        method = registry.get_method("spanv2")
        net = method.build(seed=seed, channels=channels)
        net = deploy(net) if form == "deploy" else net
        state_dict = to_state_dict(net, KeyMap(method.torch_names))
        path = tmp_path / f"{form}{seed}"
        if not has_metadata:
            checkpoint_io.write_torch(path.with_suffix(".pth"), state_dict)
            return path.with_suffix(".pth")
        metadata = checkpoint_io.CheckpointMetadata(
            method="spanv2", form=form, hparams={"channels": channels}
        )
        checkpoint_io.write_safetensors(path.with_suffix(".safetensors"), state_dict, metadata)
        return path.with_suffix(".safetensors")

    return write


# --- the top-level package ---------------------------------------------------------------------


def test_methods_lists_all_registered_names():
    assert esrjax.methods() == registry.names()


@pytest.mark.parametrize(
    ("name", "checkpoints", "problem"),
    [
        ("spanv2", {"span": "x.pth"}, "'span'"),  # the shipped weights would be loaded
        ("smt", {"spanv2": "x.pth"}, "'spanv2'"),
        ("spanv2", ["x.pth", "y.pth"], "y.pth"),
    ],
)
def test_checkpoint_of_another_method_is_an_error(name, checkpoints, problem):
    with pytest.raises(InvalidArgument, match=problem):
        esrjax.load(name, checkpoints)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tile_size": 64},
        {"tile_size": (0, 8)},
        {"tile_size": (8.5, 8)},
        {"pad_multiple": 0},
        {"pad_multiple": 2.5},
        {"self_ensemble": "no"},  # a text is true
        {"windows": [64]},
        {"windows": {"64": 1.0}},
        {"windows": {64.5: 1.0}},
        {"windows": {64: True}},
    ],
)
def test_arguments_of_another_type_are_named(weights, arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(InvalidArgument) as error:
        esrjax.load("spanv2", weights()).upscaler(**arguments)
    assert f"{name}={value!r}" in error.value.problem


def test_loaded_method_upscales_images(weights):
    spanv2 = esrjax.load("spanv2", weights())
    sr = spanv2(NOISE)
    assert (sr.shape, sr.dtype) == ((36, 56, 3), np.uint8)
    lr = NOISE.astype(np.float32)[None] / np.float32(255)
    float_sr = np.asarray(jax.jit(spanv2.net)(lr))[0]
    np.testing.assert_array_equal(sr, to_uint8(float_sr, 1.0))
    assert (spanv2.name, spanv2.scale, dict(spanv2.hparams)) == ("spanv2", 4, {"channels": 4})


def test_loaded_method_is_evaluated_on_a_dataset(weights, tmp_path, caplog):
    folder = tmp_path / "images"
    for name, side in (("a", 32), ("b", 40)):
        noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
        write_image(folder / f"{name}.png", noise)
    spanv2 = esrjax.load("spanv2", weights())
    log_note.cache_clear()
    scores = esrjax.evaluate(spanv2, folder)
    assert scores.lr_source == "bicubic from HR"
    assert f"{folder}: LR: bicubic from HR" in caplog.messages
    assert (scores.spec, sorted(scores.images)) == ("ntire", ["a", "b"])
    assert esrjax.evaluate(spanv2, folder, "y").mean != scores.mean
    assert esrjax.evaluate(lambda lr: spanv2(lr), folder) == scores


def test_dataset_is_found_by_name(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    write_image(tmp_path / "Two/HR/a.png", np.zeros((32, 32, 3), np.uint8))
    lr = bicubic_downscale(np.zeros((32, 32, 3), np.uint8))
    write_image(tmp_path / "Two/LR_bicubic_X4/ax4.png", lr)
    assert list(esrjax.evaluate(esrjax.load("spanv2", weights()), "Two").images) == ["a"]


# --- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_hparams_are_read_from_the_metadata(weights, form):
    spanv2 = inference.open_method("spanv2", weights(form))
    assert dict(spanv2.hparams) == {"channels": 4}
    assert spanv2.net.depthwise_conv.weight[...].shape == (3, 3, 1, 52)


def test_without_metadata_hparams_are_required(weights):
    path = weights(has_metadata=False)
    assert dict(inference.open_method("spanv2", path, {"channels": 4}).hparams) == {"channels": 4}
    with pytest.raises(UserError, match="tensors do not match"):
        inference.open_method("spanv2", path)


@pytest.fixture(scope="module")
def span():
    """SPAN with 4 channels in train form, whose blocks have branches to fuse."""
    return registry.get_method("span").build(channels=4)


def span_state_dict(net):
    return to_state_dict(net, KeyMap(registry.get_method("span").torch_names))


def test_both_forms_of_a_network_have_the_same_output(span, tmp_path):
    outputs = []
    for form, net in (("train", span), ("deploy", deploy(span))):
        path = tmp_path / f"{form}.pth"
        checkpoint_io.write_torch(path, span_state_dict(net))
        checkpoint = checkpoint_io.read_checkpoint(path)
        loaded = loading.load_network(
            "span", registry.get_method("span"), checkpoint, {"channels": 4}
        )
        assert loaded.form == form
        outputs.append(inference.open_method("span", path, {"channels": 4}).upscaler()(NOISE))
    spread = np.ptp(outputs[0])
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-5 * max(1, spread))


def test_mismatches_are_reported_for_the_closest_form(span, tmp_path):
    state_dict = span_state_dict(span)
    state_dict.pop("conv_1.sk.bias")
    checkpoint_io.write_torch(tmp_path / "train.pth", state_dict)
    with pytest.raises(UserError) as caught:
        inference.open_method("span", tmp_path / "train.pth", {"channels": 4})
    assert caught.value.problem.startswith("1 of ")
    assert "in train form with channels=4" in caught.value.location


def test_shipped_weights_are_the_default(crumbs):
    crumb = esrjax.load("crumb")
    assert crumb.checkpoint.path == crumbs / "crumbs/crumb.safetensors"
    assert crumb(NOISE).shape == (36, 56, 3)


# --- ensembles ---------------------------------------------------------------------------------


def self_ensemble(upscaler, lr):
    """The mean over the eight flips and rotations, written out."""
    total = 0
    for k in range(4):
        for flip in (False, True):
            rotated = np.rot90(lr, k)
            sr = upscaler(np.ascontiguousarray(rotated[:, ::-1] if flip else rotated))
            total = total + np.rot90(sr[:, ::-1] if flip else sr, -k).astype(np.float64)
    return total / 8


def test_ensemble_is_the_weighted_mean_of_its_members(crumbs):
    ensemble, crumb, loaf = (esrjax.load(name) for name in ("crumbs", "crumb", "loaf"))
    expected = (3 * self_ensemble(crumb.upscaler(), NOISE) + loaf.upscaler()(NOISE)) / 4
    np.testing.assert_allclose(ensemble.upscaler()(NOISE), expected, rtol=0, atol=1e-6)
    assert np.abs(ensemble.upscaler()(NOISE) - crumb.upscaler()(NOISE)).max() > 0.01
    np.testing.assert_array_equal(ensemble(NOISE), to_uint8(ensemble.upscaler()(NOISE), 1.0))


def register_ensemble(monkeypatch, ensemble_name, ensemble):
    get_entry = registry.get_entry
    monkeypatch.setattr(
        registry, "get_entry", lambda name: ensemble if name == ensemble_name else get_entry(name)
    )


def test_members_can_have_checkpoints_of_their_own(monkeypatch, tmp_path, weights, crumbs):
    ensemble = Ensemble(
        members={"spanv2": Member(), "crumb": Member()}, team="us", paper="none", license="MIT"
    )
    get_entry = registry.get_entry
    register_ensemble(monkeypatch, "duo", ensemble)
    duo = esrjax.load("duo", {"spanv2": weights()})
    outputs = [duo.members[name].upscaler()(NOISE) for name in ("spanv2", "crumb")]
    np.testing.assert_allclose(duo.upscaler()(NOISE), sum(outputs) / 2, rtol=0, atol=1e-6)
    with pytest.raises(InvalidArgument, match="spanv2, crumb"):
        esrjax.load("duo", weights())
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))  # where no weights are downloaded
    without_weights = replace(get_entry("spanv2"), pretrained=None)
    monkeypatch.setattr(
        registry,
        "get_method",
        lambda name: without_weights if name == "spanv2" else get_entry(name),
    )
    with pytest.raises(NotFound, match="spanv2"):
        esrjax.load("duo")


def test_members_are_run_with_the_options_of_their_ensemble(monkeypatch, weights, crumbs):
    members = {"spanv2": Member(windows={12: 1.0, 14: 3.0}, pad_multiple=4), "crumb": Member()}
    ensemble = Ensemble(members=members, fusion="adaptive", team="us", paper="none", license="MIT")
    register_ensemble(monkeypatch, "duo", ensemble)
    duo = esrjax.load("duo", {"spanv2": weights()}, **{"crumb.kernel_size": 3})
    spanv2, crumb = duo.members.values()
    upscaler = spanv2.upscaler(windows={12: 1.0, 14: 3.0}, pad_multiple=4)
    assert np.abs(upscaler(NOISE) - spanv2.upscaler()(NOISE)).max() > 1e-3
    outputs = [to_uint8(run(NOISE), 1.0).astype(int) for run in (upscaler, crumb.upscaler())]
    np.testing.assert_array_equal(duo(NOISE), sum(outputs) // 2)
    with pytest.raises(InvalidArgument, match="hparams belong to its members"):
        esrjax.load("duo", {"spanv2": weights()}, kernel_size=3)
    with pytest.raises(UserError, match="width"):
        esrjax.load("duo", {"spanv2": weights()}, **{"crumb.width": 3})


def test_members_must_have_the_scale_of_the_ensemble(monkeypatch, crumbs):
    x2 = Ensemble(members={"crumb": Member()}, scale=2, team="us", paper="none", license="MIT")
    register_ensemble(monkeypatch, "x2", x2)
    with pytest.raises(InvalidArgument, match="scale, 2"):
        esrjax.load("x2")


def test_image_below_the_smallest_side_is_rejected(crumbs):
    assert isinstance(registry.get_entry("crumb"), Method)
    with pytest.raises(ImageTooSmall, match="at least 6 pixels"):
        esrjax.load("crumb")(NOISE[:5])
    with pytest.raises(ImageTooSmall):
        esrjax.load("crumbs")(NOISE[:5])
