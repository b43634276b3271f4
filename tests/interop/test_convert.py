"""Conversion of checkpoints changes file format and form, but no value."""

import hashlib
import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from optional import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file
from twins.drawn import random_state_dict

from esrjax import registry
from esrjax.errors import ExportError, InvalidArgument
from esrjax.inference import open_method
from esrjax.interop import convert
from esrjax.interop.convert import checkpoint_format, export_official, state_dict_diffs
from esrjax.loading import abstract_network
from esrjax.method import Method, Weights
from esrjax.nn import checkpoint_io
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, load_state_dict, named_parameters, to_state_dict


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
        "tensors_sha256": checkpoint_io.hash_tensors(load_file(path)),
    }
    esrjax("weights", "convert", "span", path, "-o", tmp_path / "again.safetensors")
    assert read_metadata(tmp_path / "again.safetensors")["source_sha256"] == sha256(official)


def test_renamed_copy_is_recognized_by_its_sha256(official, tmp_path, monkeypatch):
    copy = tmp_path / "renamed.pt"
    shutil.copy(official, copy)
    attempts = []
    load_state_dict = convert.load_network.__globals__["load_state_dict"]
    monkeypatch.setitem(
        convert.load_network.__globals__,
        "load_state_dict",
        lambda *a: attempts.append(a) or load_state_dict(*a),
    )
    result = convert.convert("span", copy, tmp_path / "span.safetensors")
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
    state_dict = checkpoint_io.read_checkpoint(deploy_path).state_dict
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
    with pytest.raises(ExportError, match="params is 30, reported 31"):
        convert.convert("crumb", source, tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_format_follows_from_the_suffix(tmp_path):
    names = {"a.safetensors": "safetensors", "a.pth": "torch", "a.pt": "torch"}
    names |= {"a.SafeTensors": "safetensors", "a.PTH": "torch"}
    assert {name: checkpoint_format(tmp_path / name) for name in names} == names
    assert checkpoint_format(tmp_path / "a.bin", "torch") == "torch"
    with pytest.raises(InvalidArgument):
        checkpoint_format(tmp_path / "a.bin", "safetensors")
    for name in ("a.onnx", "a.npz", "a"):  # a PyTorch file under these names would mislead
        with pytest.raises(InvalidArgument, match=name):
            checkpoint_format(tmp_path / name)


def test_torch_file_has_the_nesting_of_the_published_file(monkeypatch, crumbs, tmp_path):
    source, target = crumbs / "crumbs/crumb.safetensors", tmp_path / "back.pth"
    published = Weights(sha256="0" * 64, state_dict_key="params_ema")
    monkeypatch.setitem(registry.get_method("crumb").weights, "paper", published)
    convert.convert("crumb", source, target, to="torch")
    assert set(torch_load(target)) == {"params_ema"}
    assert set(torch_load(target)["params_ema"]) == {"filter.weight", "filter.bias"}


# --- Official checkpoints are exported as they were published, and differences are listed ---


OFFICIAL = {"span": "team00_SPAN.pth", "spanv2": "team22_spanv2_c2.pth", "dscf": "team23_DSCF.pth"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The folder of a run with a SPANV2 of four channels."""
    method = registry.get_method("spanv2")
    net = method.build(channels=4)
    metadata = checkpoint_io.make_metadata("spanv2", method, "train", {"channels": 4})
    state_dict = to_state_dict(net, KeyMap(method.torch_names))
    checkpoint_io.write_safetensors(tmp_path / "run/deploy.safetensors", state_dict, metadata)
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["span", "spanv2"])
def test_published_checkpoint_is_exported_unchanged(reference, monkeypatch, tmp_path, name):
    monkeypatch.setenv("ESRJAX_REFERENCE", str(reference))
    file = reference / "weights" / OFFICIAL[name]
    result = export_official(open_method(name, file), tmp_path / "out.pth")
    assert (result.reference_file, result.mismatches, result.form) == (file.name, (), "deploy")
    written, published = (
        checkpoint_io.read_checkpoint(tmp_path / "out.pth"),
        checkpoint_io.read_checkpoint(file),
    )
    assert written.sha256 == result.sha256
    assert all(
        np.array_equal(written.state_dict[key], value)
        for key, value in published.state_dict.items()
    )


def test_without_a_published_file_weights_are_loaded_into_the_jax_network(
    monkeypatch, tmp_path, run_dir
):
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    result = export_official(open_method("spanv2", run_dir), tmp_path / "out.pth")
    assert (result.reference_file, result.mismatches, result.form) == (None, (), "deploy")
    assert result.summary.startswith(f"{result.num_tensors} tensors, which load strictly")
    assert "no published checkpoint" in result.summary


def test_differences_in_keys_shapes_and_dtypes_are_listed():
    published = {"a": np.zeros(3, np.float32), "b": np.zeros((2, 2)), "c": np.zeros(1)}
    written = {"a": np.zeros(3), "b": np.zeros((2, 3)), "d": np.zeros(1)}
    assert set(state_dict_diffs(written, published)) == {
        "c is missing",
        "d is unexpected",
        "a is float64 (3,), published float32 (3,)",
        "b is float64 (2, 3), published float64 (2, 2)",
    }
    assert not list(state_dict_diffs(published, published))


# --- Weights written to .pth and read again are bit-exact, and PyTorch networks load them ---


METHODS = [
    name
    for name in registry.names()
    if registry.distribution_of(name).startswith("esrjax ")
    and isinstance(registry.get_entry(name), Method)
]
TWINS = "span spanv2 rfdn_span hfenet safmn_deep15 mambagate_sr".split()


@pytest.fixture
def save_random_weights(tmp_path):
    """Return an abstract network, one with random weights, and the .pth it was saved to."""

    def save(name, form):
        method = registry.get_method(name)
        hparams = {} if name in TWINS else method.get_test_hparams()
        abstract_net = abstract_network(method, form, hparams)
        key_map = KeyMap(method.torch_names)
        shapes = {
            key_map.to_torch(path): torch_shape(variable)
            for path, variable in named_parameters(abstract_net)
        }
        net = load_state_dict(abstract_net, random_state_dict(shapes, seed=2), key_map)
        checkpoint_io.write_torch(tmp_path / f"{name}.pth", to_state_dict(net, key_map))
        return abstract_net, net, tmp_path / f"{name}.pth"

    return save


def torch_shape(variable):
    """Shape of a variable in PyTorch's layout."""
    value, axes = variable.get_value(), variable.get_metadata().get("torch_axes")
    return tuple(value.shape if axes is None else (value.shape[axis] for axis in axes))


# `check_method` tests the round trip of every method in memory, and the published checkpoints make
# it through files; the networks with the most kinds of parameters make it here in `make test`.
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("span", "dwmamba", "zenosr") else pytest.mark.slow)
        for name in METHODS
    ],
)
def test_every_method_round_trips_bit_exact(save_random_weights, name, form):
    abstract_net, net, path = save_random_weights(name, form)
    checkpoint = checkpoint_io.read_checkpoint(path)
    loaded_net = load_state_dict(
        abstract_net, checkpoint.state_dict, KeyMap(registry.get_method(name).torch_names)
    )
    before, after = dict(named_parameters(net)), dict(named_parameters(loaded_net))
    assert before.keys() == after.keys() and len(before) == len(checkpoint.state_dict) > 0
    for key, variable in before.items():
        expected, actual = np.asarray(variable.get_value()), np.asarray(after[key].get_value())
        assert (expected.dtype, expected.tobytes()) == (actual.dtype, actual.tobytes()), key


@pytest.mark.parametrize("name", TWINS)
def test_twin_loads_the_file_strictly(save_random_weights, name):
    _, net, path = save_random_weights(name, "deploy")
    twin = importlib.import_module(f"twins.{name}").Twin()
    state_dict = torch.load(path, weights_only=True)
    twin.load_state_dict(state_dict, strict=True)
    for key, value in to_state_dict(net, KeyMap(registry.get_method(name).torch_names)).items():
        np.testing.assert_array_equal(twin.state_dict()[key].numpy(), value, err_msg=key)
