"""Conversion of checkpoints changes file format and form, but no value."""

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
from esrjax.bridge.conversion import CostMismatch, SuffixMismatch, checkpoint_format
from esrjax.method import Weights
from esrjax.network import archive
from esrjax.network.naming import KeyMap
from esrjax.network.reparam import deploy
from esrjax.network.weights import to_state_dict


@pytest.fixture
def official(reference):
    return reference / "weights/team00_SPAN.pth"


@pytest.fixture(scope="module")
def net():
    return registry.get_method("span").build(channels=48)


@pytest.fixture
def user_checkpoint(net, tmp_path):
    """A user's SPAN in train form with 48 channels, saved by PyTorch."""
    weights = to_state_dict(net, KeyMap(registry.get_method("span").torch_names))
    state_dict = {
        f"module.{key}": torch.from_numpy(np.array(value)) for key, value in weights.items()
    }
    torch.save({"params_ema": state_dict, "epoch": 3}, tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def torch_load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def read_metadata(path):
    """The esrjax metadata of a file, read with safetensors alone."""
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["esrjax"])


def test_official_tensors_round_trip_bit_exact(esrjax, official, tmp_path):
    converted, restored = tmp_path / "span.safetensors", tmp_path / "back.pth"
    assert esrjax("weights", "convert", "span", official, "-o", converted).out == (
        f"{converted}: span, deploy form, 44 tensors, 150688 parameters\n"
    )
    assert (
        esrjax("weights", "convert", "span", converted, "-o", restored, "--to", "torch").code == 0
    )
    official_state, restored_state = torch_load(official), torch_load(restored)
    assert len(official_state) == 44 and set(official_state) == set(restored_state)
    for key, tensor in official_state.items():
        assert (tensor.dtype, tensor.shape) == (
            restored_state[key].dtype,
            restored_state[key].shape,
        )
        assert torch.equal(tensor, restored_state[key])


def test_metadata_of_a_converted_checkpoint(esrjax, official, tmp_path):
    path = tmp_path / "span.safetensors"
    esrjax("weights", "convert", "span", official, "-o", path)
    fields = read_metadata(path)
    assert fields.pop("esrjax") == registry.distribution_of("span").split()[1]
    assert fields.pop("note") == ""
    assert fields == {
        "method": "span",
        "form": "deploy",
        "hparams": {},
        "data_range": 1.0,
        "scale": 4,
        "license": "MIT",
        "source_sha256": sha256(official),
    }
    esrjax("weights", "convert", "span", path, "-o", tmp_path / "again.safetensors")
    assert read_metadata(tmp_path / "again.safetensors")["source_sha256"] == sha256(official)


def test_renamed_copy_is_recognized_by_its_sha256(official, tmp_path, monkeypatch):
    copy = tmp_path / "renamed.pt"
    shutil.copy(official, copy)
    attempts = []
    load_state_dict = conversion.load_network.__globals__["load_state_dict"]
    monkeypatch.setitem(
        conversion.load_network.__globals__,
        "load_state_dict",
        lambda *a: attempts.append(a) or load_state_dict(*a),
    )
    result = conversion.convert("span", copy, tmp_path / "span.safetensors")
    assert (result.form, result.num_params, len(attempts)) == ("deploy", 150_688, 1)


def test_train_form_is_recognized_by_its_tensors(esrjax, net, user_checkpoint, tmp_path):
    train_path, deploy_path = tmp_path / "train.safetensors", tmp_path / "deploy.safetensors"
    hparam = ["--hparam", "channels=48"]
    assert (
        "span, train form,"
        in esrjax("weights", "convert", "span", user_checkpoint, "-o", train_path, *hparam).out
    )
    assert "span, deploy form, 44 tensors, 426288 parameters" in (
        esrjax(
            "weights",
            "convert",
            "span",
            user_checkpoint,
            "-o",
            deploy_path,
            *hparam,
            "--form",
            "deploy",
        ).out
    )
    assert (read_metadata(train_path)["form"], read_metadata(deploy_path)["form"]) == (
        "train",
        "deploy",
    )
    expected = to_state_dict(deploy(net), KeyMap(registry.get_method("span").torch_names))
    state_dict = archive.read_checkpoint(deploy_path).state_dict
    assert all(np.array_equal(state_dict[key], value) for key, value in expected.items())


def test_hparams_are_stored_in_metadata(esrjax, user_checkpoint, tmp_path):
    path = tmp_path / "user.safetensors"
    esrjax(
        "weights",
        "convert",
        "span",
        user_checkpoint,
        "-o",
        path,
        "--hparam",
        "channels=48",
        "--form",
        "deploy",
    )
    assert read_metadata(path)["hparams"] == {"channels": 48}
    cost = esrjax("method", "cost", "span", "--checkpoint", path, "--json").json
    assert cost == esrjax("method", "cost", "span", "--hparam", "channels=48", "--json").json
    assert cost["params"] == 426_288
    images = tmp_path / "images"
    images.mkdir()
    Image.effect_noise((32, 32), 50).save(images / "noise.png")
    args = ["--checkpoint", path, "--data", images, "--json"]
    scores = esrjax("eval", "span", *args).json
    assert (scores["method"], scores["spec"]) == ("span", "ntire")
    assert set(scores["images"]["noise"]) == set(scores["mean"]) == {"psnr", "ssim"}
    mismatch = esrjax(
        "weights", "convert", "span", path, "-o", tmp_path / "n.pth", "--hparam", "channels=32"
    )
    assert mismatch.code == 2 and "channels=32" in mismatch.err


def test_network_of_another_cost_is_not_converted(monkeypatch, crumbs, tmp_path):
    crumb = registry.get_method("crumb")
    source = crumbs / "crumbs/crumb.safetensors"
    monkeypatch.setitem(crumb.reported, "params", 31)
    with pytest.raises(CostMismatch, match="params is 30, reported 31"):
        conversion.convert("crumb", source, tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_format_follows_from_the_suffix(tmp_path):
    names = {"a.safetensors": "safetensors", "a.pth": "torch", "a.pt": "torch"}
    assert {name: checkpoint_format(tmp_path / name) for name in names} == names
    assert checkpoint_format(tmp_path / "a.bin", "torch") == "torch"
    with pytest.raises(SuffixMismatch):
        checkpoint_format(tmp_path / "a.bin", "safetensors")


def test_torch_file_has_the_nesting_of_the_published_file(monkeypatch, crumbs, tmp_path):
    source, target = crumbs / "crumbs/crumb.safetensors", tmp_path / "back.pth"
    published = Weights(sha256="0" * 64, state_dict_key="params_ema")
    monkeypatch.setitem(registry.get_method("crumb").weights, "paper", published)
    conversion.convert("crumb", source, target, to="torch")
    assert set(torch_load(target)) == {"params_ema"}
    assert set(torch_load(target)["params_ema"]) == {"filter.weight", "filter.bias"}
