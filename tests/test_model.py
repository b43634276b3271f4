"""A method with weights is a function from pictures to larger pictures."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import esrjax
from esrjax import model, recognition, registry
from esrjax.errors import UserError
from esrjax.method import Ensemble, Member, Method
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import tensors
from esrjax.pictures.files import write
from esrjax.pictures.metrics import quantise
from esrjax.pictures.resize import downscale

NOISE = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)


@pytest.fixture
def weights(tmp_path):
    """Writes weights of SPANV2, 4 channels wide, in either form: `weights(form, seed) -> path`."""

    def make(form="deploy", seed=0, manifest=True, channels=4):
        method = registry.plain("spanv2")
        net = method.build(seed=seed, channels=channels)
        held = tensors(deploy(net) if form == "deploy" else net, Naming(method.torch_names))
        path = tmp_path / f"{form}{seed}"
        if not manifest:
            archive.write_torch(path.with_suffix(".pth"), held)
            return path.with_suffix(".pth")
        said = archive.Manifest(method="spanv2", form=form, sizes={"channels": channels})
        archive.write_safetensors(path.with_suffix(".safetensors"), held, said)
        return path.with_suffix(".safetensors")

    return make


# --- the Python door ---------------------------------------------------------------------------


def test_the_door_knows_the_methods():
    assert esrjax.methods() == registry.names()


def test_a_loaded_method_is_called_on_pictures(weights):
    net = esrjax.load("spanv2", weights())
    big = net(NOISE)
    assert (big.shape, big.dtype) == ((36, 56, 3), np.uint8)
    lr = NOISE.astype(np.float32)[None] / np.float32(255)
    sr = np.asarray(jax.jit(net.net)(lr))[0]
    np.testing.assert_array_equal(big, quantise(sr, 1.0))
    assert (net.name, net.scale, dict(net.sizes)) == ("spanv2", 4, {"channels": 4})


def test_a_loaded_method_is_evaluated_over_a_set(weights, tmp_path):
    pictures = tmp_path / "pictures"
    for name, side in (("a", 32), ("b", 40)):
        noise = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
        write(pictures / f"{name}.png", noise)
    net = esrjax.load("spanv2", weights())
    scores = esrjax.evaluate(net, pictures)
    assert (scores.spec, sorted(scores.images)) == ("ntire", ["a", "b"])
    assert esrjax.evaluate(net, pictures, "y").mean != scores.mean
    assert esrjax.evaluate(lambda lr: net(lr), pictures) == scores


def test_a_set_is_found_by_name(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    write(tmp_path / "Two/HR/a.png", np.zeros((32, 32, 3), np.uint8))
    lr = downscale(np.zeros((32, 32, 3), np.uint8))
    write(tmp_path / "Two/LR_bicubic_X4/ax4.png", lr)
    assert list(esrjax.evaluate(esrjax.load("spanv2", weights()), "Two").images) == ["a"]


# --- what a checkpoint is ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_sizes_come_from_the_manifest(weights, form):
    net = model.open_method("spanv2", weights(form))
    assert dict(net.sizes) == {"channels": 4}
    assert net.net.depthwise_conv.weight[...].shape == (3, 3, 1, 52)


def test_without_a_manifest_sizes_are_said(weights):
    path = weights(manifest=False)
    assert dict(model.open_method("spanv2", path, {"channels": 4}).sizes) == {"channels": 4}
    with pytest.raises(UserError, match="tensors do not match"):
        model.open_method("spanv2", path)


@pytest.fixture(scope="module")
def span():
    """SPAN in train form, four channels wide, whose blocks have branches to fuse."""
    return registry.plain("span").build(channels=4)


def as_torch(net):
    return tensors(net, Naming(registry.plain("span").torch_names))


def test_both_forms_of_one_network_make_the_same_picture(span, tmp_path):
    pictures = []
    for form, net in (("train", span), ("deploy", deploy(span))):
        path = tmp_path / f"{form}.pth"
        archive.write_torch(path, as_torch(net))
        read = archive.read(path)
        found = recognition.recognise("span", registry.plain("span"), read, {"channels": 4})
        assert found.form == form
        pictures.append(model.open_method("span", path, {"channels": 4}).upscaler()(NOISE))
    spread = np.ptp(pictures[0])
    np.testing.assert_allclose(pictures[0], pictures[1], rtol=0, atol=1e-5 * max(1, spread))


def test_the_nearest_form_is_the_one_whose_mistakes_are_told(span, tmp_path):
    held = as_torch(span)
    held.pop("conv_1.sk.bias")
    archive.write_torch(tmp_path / "train.pth", held)
    with pytest.raises(UserError) as caught:
        model.open_method("span", tmp_path / "train.pth", {"channels": 4})
    assert caught.value.problem.startswith("1 of ")
    assert "in train form channels=4" in caught.value.place


def test_shipped_weights_are_used_where_none_are_given(crumbs):
    net = esrjax.load("crumb")
    assert net.checkpoint.path == crumbs / "crumbs/crumb.safetensors"
    assert net(NOISE).shape == (36, 56, 3)


# --- ensembles ---------------------------------------------------------------------------------


def turns(upscaler, lr):
    """The mean over the eight flips and turns, written out."""
    total = 0
    for quarter in range(4):
        for flipped in (False, True):
            turned = np.rot90(lr, quarter)
            sr = upscaler(np.ascontiguousarray(turned[:, ::-1] if flipped else turned))
            total = total + np.rot90(sr[:, ::-1] if flipped else sr, -quarter).astype(np.float64)
    return total / 8


def test_an_ensemble_is_the_weighted_mean_of_its_members(crumbs):
    fusion, crumb, loaf = (esrjax.load(name) for name in ("crumbs", "crumb", "loaf"))
    wanted = (3 * turns(crumb.upscaler(), NOISE) + loaf.upscaler()(NOISE)) / 4
    np.testing.assert_allclose(fusion.upscaler()(NOISE), wanted, rtol=0, atol=1e-6)
    assert np.abs(fusion.upscaler()(NOISE) - crumb.upscaler()(NOISE)).max() > 0.01
    np.testing.assert_array_equal(fusion(NOISE), quantise(fusion.upscaler()(NOISE), 1.0))


def test_members_can_have_checkpoints_of_their_own(monkeypatch, tmp_path, weights, crumbs):
    pair = Ensemble(
        members={"spanv2": Member(), "crumb": Member()}, team="us", paper="none", license="MIT"
    )
    known = registry.method
    monkeypatch.setattr(registry, "method", lambda name: pair if name == "pair" else known(name))
    fusion = esrjax.load("pair", {"spanv2": weights()})
    shares = [fusion.members[name].upscaler()(NOISE) for name in ("spanv2", "crumb")]
    np.testing.assert_allclose(fusion.upscaler()(NOISE), sum(shares) / 2, rtol=0, atol=1e-6)
    with pytest.raises(model.BadEnsemble, match="belong to its members: spanv2, crumb"):
        esrjax.load("pair", weights())
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))  # where none were brought to
    bare = replace(known("spanv2"), pretrained=None)
    monkeypatch.setattr(registry, "plain", lambda name: bare if name == "spanv2" else known(name))
    with pytest.raises(model.NoWeights, match="spanv2 ships no weights"):
        esrjax.load("pair")


def test_members_are_run_as_their_ensemble_says(monkeypatch, weights, crumbs):
    how = Member(windows={12: 1.0, 14: 3.0}, mirrored=4)
    members = {"spanv2": how, "crumb": Member()}
    pair = Ensemble(members=members, fusion="adaptive", team="us", paper="none", license="MIT")
    known = registry.method
    monkeypatch.setattr(registry, "method", lambda name: pair if name == "pair" else known(name))
    fusion = esrjax.load("pair", {"spanv2": weights()}, **{"crumb.side": 3})
    span, crumb = fusion.members.values()
    one = span.upscaler(windows={12: 1.0, 14: 3.0}, mirrored=4)
    assert np.abs(one(NOISE) - span.upscaler()(NOISE)).max() > 1e-3
    pictures = [quantise(run(NOISE), 1.0).astype(int) for run in (one, crumb.upscaler())]
    np.testing.assert_array_equal(fusion(NOISE), sum(pictures) // 2)
    with pytest.raises(model.BadEnsemble, match="sizes belong to its members"):
        esrjax.load("pair", {"spanv2": weights()}, side=3)
    with pytest.raises(UserError, match="no such size: width"):
        esrjax.load("pair", {"spanv2": weights()}, **{"crumb.width": 3})


def test_members_share_their_scale(monkeypatch, crumbs):
    odd = Ensemble(members={"crumb": Member()}, scale=2, team="us", paper="none", license="MIT")
    known = registry.method
    monkeypatch.setattr(registry, "method", lambda name: odd if name == "odd" else known(name))
    with pytest.raises(model.BadEnsemble, match="all make pictures 2 times larger"):
        esrjax.load("odd")


def test_a_method_says_how_small_a_picture_may_be(crumbs):
    assert isinstance(registry.method("crumb"), Method)
    with pytest.raises(model.PictureTooSmall, match="at least 6 pixels a side"):
        esrjax.load("crumb")(NOISE[:5])
    with pytest.raises(model.PictureTooSmall):
        esrjax.load("crumbs")(NOISE[:5])
