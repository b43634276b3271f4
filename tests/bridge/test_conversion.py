"""Weights change their file and their form, and no number of theirs."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from esrjax import registry
from esrjax.bridge import conversion
from esrjax.bridge.conversion import UnclearFormat, WrongFigures, kind
from esrjax.method import Weights
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import tensors


@pytest.fixture
def official(reference):
    return reference / "weights/team00_SPAN.pth"


@pytest.fixture(scope="module")
def net():
    return registry.plain("span").build(channels=48)


@pytest.fixture
def wide(net, tmp_path):
    """A user's own SPAN in train form, 48 channels wide, saved by PyTorch."""
    held = tensors(net, Naming(registry.plain("span").torch_names))
    state = {f"module.{key}": torch.from_numpy(np.array(value)) for key, value in held.items()}
    torch.save({"params_ema": state, "epoch": 3}, tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def saved(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def said(path):
    """The manifest of a file, as others can read it."""
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["esrjax"])


def test_official_tensors_come_back_bit_for_bit(esrjax, official, tmp_path):
    ours, back = tmp_path / "span.safetensors", tmp_path / "back.pth"
    assert esrjax("convert", "span", official, "-o", ours).out == (
        f"{ours}: span, deploy form, 44 tensors, 150688 parameters\n"
    )
    assert esrjax("convert", "span", ours, "-o", back, "--to", "torch").code == 0
    theirs, again = saved(official), saved(back)
    assert len(theirs) == 44 and set(theirs) == set(again)
    for key, tensor in theirs.items():
        assert (tensor.dtype, tensor.shape) == (again[key].dtype, again[key].shape)
        assert torch.equal(tensor, again[key])


def test_the_manifest_says_whose_they_are(esrjax, official, tmp_path):
    path = tmp_path / "span.safetensors"
    esrjax("convert", "span", official, "-o", path)
    fields = said(path)
    assert fields.pop("esrjax") == registry.origin("span").split()[1]
    assert fields.pop("note") == ""
    assert fields == {
        "method": "span",
        "form": "deploy",
        "sizes": {},
        "data_range": 1.0,
        "scale": 4,
        "license": "MIT",
        "source_sha256": sha256(official),
    }
    esrjax("convert", "span", path, "-o", tmp_path / "again.safetensors")
    assert said(tmp_path / "again.safetensors")["source_sha256"] == sha256(official)


def test_a_copy_is_recognised_by_its_sha256(official, tmp_path, monkeypatch):
    copy = tmp_path / "renamed.pt"
    shutil.copy(official, copy)
    tried = []
    load = conversion.recognise.__globals__["load"]
    monkeypatch.setitem(
        conversion.recognise.__globals__, "load", lambda *a: tried.append(a) or load(*a)
    )
    done = conversion.convert("span", copy, tmp_path / "span.safetensors")
    assert (done.form, done.params, len(tried)) == ("deploy", 150_688, 1)


def test_a_train_form_is_recognised_by_trying(esrjax, net, wide, tmp_path):
    kept, thin = tmp_path / "kept.safetensors", tmp_path / "thin.safetensors"
    size = ["--size", "channels=48"]
    assert "span, train form," in esrjax("convert", "span", wide, "-o", kept, *size).out
    assert "span, deploy form, 44 tensors, 426288 parameters" in (
        esrjax("convert", "span", wide, "-o", thin, *size, "--form", "deploy").out
    )
    assert (said(kept)["form"], said(thin)["form"]) == ("train", "deploy")
    wanted = tensors(deploy(net), Naming(registry.plain("span").torch_names))
    found = archive.read(thin).tensors
    assert all(np.array_equal(found[key], value) for key, value in wanted.items())


def test_sizes_are_remembered(esrjax, wide, tmp_path):
    path = tmp_path / "wide.safetensors"
    esrjax("convert", "span", wide, "-o", path, "--size", "channels=48", "--form", "deploy")
    assert said(path)["sizes"] == {"channels": 48}
    cost = esrjax("cost", "span", "--checkpoint", path, "--json").json
    assert cost == esrjax("cost", "span", "--size", "channels=48", "--json").json
    assert cost["params"] == 426_288
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.effect_noise((32, 32), 50).save(pictures / "noise.png")
    words = ["--checkpoint", path, "--data", pictures, "--json"]
    scores = esrjax("eval", "span", *words).json
    assert (scores["method"], scores["spec"]) == ("span", "ntire")
    assert set(scores["images"]["noise"]) == set(scores["mean"]) == {"psnr", "ssim"}
    narrow = esrjax("convert", "span", path, "-o", tmp_path / "n.pth", "--size", "channels=32")
    assert narrow.code == 2 and "channels=32" in narrow.err


def test_a_network_that_costs_something_else_is_not_converted(monkeypatch, crumbs, tmp_path):
    crumb = registry.plain("crumb")
    given = crumbs / "crumbs/crumb.safetensors"
    monkeypatch.setitem(crumb.reported, "params", 31)
    with pytest.raises(WrongFigures, match="params is 30, reported 31"):
        conversion.convert("crumb", given, tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_suffix_says_the_format(tmp_path):
    names = {"a.safetensors": "safetensors", "a.pth": "torch", "a.pt": "torch"}
    assert {name: kind(tmp_path / name) for name in names} == names
    assert kind(tmp_path / "a.bin", "torch") == "torch"
    with pytest.raises(UnclearFormat):
        kind(tmp_path / "a.bin", "safetensors")


def test_torch_tensors_lie_where_the_published_file_has_them(monkeypatch, crumbs, tmp_path):
    given, back = crumbs / "crumbs/crumb.safetensors", tmp_path / "back.pth"
    published = Weights(sha256="0" * 64, root="params_ema")
    monkeypatch.setitem(registry.plain("crumb").weights, "paper", published)
    conversion.convert("crumb", given, back, to="torch")
    assert set(saved(back)) == {"params_ema"}
    assert set(saved(back)["params_ema"]) == {"filter.weight", "filter.bias"}
