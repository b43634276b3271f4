"""Checkpoint files: round trips, and errors of files that cannot be read or written."""

import dataclasses
import hashlib
import os
import stat
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
from optional import torch
from safetensors.numpy import save_file

from esrjax.errors import MissingExtra, UnreadableFile, UnwritableFile
from esrjax.nn import checkpoint_io
from esrjax.nn.checkpoint_io import (
    CheckpointMetadata,
    read_checkpoint,
    write_safetensors,
    write_torch,
)

METADATA = CheckpointMetadata(
    method="span", form="deploy", hparams={"channels": 28}, note="for the tests"
)
TENSORS = {
    "body.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "scalar": np.array(7),
    "empty": np.zeros((0, 3), np.float16),
}


class RunsCode:
    """An object whose unpickling creates a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        np.testing.assert_array_equal(ours[key], value, strict=True)


def save_pth(folder, value):
    path = folder / "net.pth"
    torch.save(value, path)
    return path


def read_error(path):
    """Return the error that reading the file raises."""
    with pytest.raises(UnreadableFile) as caught:
        read_checkpoint(path)
    assert str(path) in caught.value.location
    return caught.value


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", *checkpoint_io.STATE_DICT_KEYS])
def test_pth_round_trip_under_every_state_dict_key(tmp_path, key):
    path = tmp_path / "net.pth"
    write_torch(path, TENSORS, [key] if key else ())
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.state_dict, TENSORS)
    assert checkpoint.metadata is None
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_nested_state_dict_keys_and_other_entries_are_handled(tmp_path):
    state = {"module.a.weight": torch.ones(2), "module.b.module.weight": torch.zeros(2)}
    saved = {"epoch": 3, "optimizer": {"lr": torch.ones(1)}, "params": {"state_dict": state}}
    assert set(read_checkpoint(save_pth(tmp_path, saved)).state_dict) == set(state)


def test_parameters_and_bfloat16_tensors_are_read(tmp_path):
    third = torch.tensor(1 / 3, dtype=torch.bfloat16)
    path = save_pth(tmp_path, {"w": torch.nn.Parameter(torch.ones(2)), "b": third})
    assert_same(
        read_checkpoint(path).state_dict,
        {"w": np.ones(2, np.float32), "b": np.array(0.333984375, np.float32)},
    )


def test_safetensors_round_trip_with_metadata(tmp_path):
    path = tmp_path / "new" / "net.safetensors"
    half = {"half": np.ones(3, ml_dtypes.bfloat16)}
    write_safetensors(path, TENSORS | half, METADATA)
    checkpoint = read_checkpoint(path)
    assert_same(checkpoint.state_dict, TENSORS | half)
    assert checkpoint.metadata == METADATA
    assert checkpoint.path == path


def test_safetensors_of_another_program_has_no_metadata(tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "net.safetensors", metadata={"format": "pt"})
    assert read_checkpoint(tmp_path / "net.safetensors").metadata is None


def test_run_directory_is_read_as_its_deployed_network(tmp_path):
    write_safetensors(tmp_path / "deploy.safetensors", TENSORS, METADATA)
    assert_same(read_checkpoint(tmp_path).state_dict, TENSORS)


def test_pickle_that_would_run_code_is_rejected_and_does_not_run(tmp_path):
    path = save_pth(tmp_path, {"weight": torch.ones(1), "extra": RunsCode(tmp_path / "ran")})
    error = read_error(path)
    assert not (tmp_path / "ran").exists()
    assert "would run code" in error.problem
    assert "posix.mkdir" in error.rule
    assert "net.state_dict()" in error.remedy


def truncated(path):
    torch.save({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-200])


def truncated_safetensors(path):
    save_file({"a": np.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-200])


def deflated(path):
    torch.save({"a": torch.ones(100)}, path)
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in entries.items():
            new.writestr(name, content)


def expanded(path):
    torch.save({"a": torch.ones(1).expand(2**18, 2**20)}, path)


def shared_dictionaries(path):
    inner = {"x": 1}
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    torch.save(inner, path)


def text(path):
    path.write_text("404: not found")


def html(path):
    path.write_text("<!DOCTYPE html><html>quota exceeded</html>")


def torch_script(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"")
        archive.writestr("net/constants.pkl", b"")


def npz(path):
    with path.open("wb") as file:
        np.savez(file, a=np.ones(3))


def onnx(path):
    path.write_bytes(b"\x08\x08\x12\x06esrjax")


def empty(path):
    path.touch()


def unknown_metadata_field(path):
    fields = '{"method": "span", "form": "deploy", "from_the_future": 1}'
    save_file({"a": np.ones(3)}, path, metadata={"esrjax": fields})


def metadata_without_json(path):
    save_file({"a": np.ones(3)}, path, metadata={"esrjax": "no json"})


@pytest.mark.parametrize(
    "name, make, reason",
    [
        ("net.pth", truncated, "it is an incomplete archive"),
        ("net.pth", deflated, "it is compressed"),
        ("net.pth", expanded, f"its tensors have {2**40:,} bytes"),
        ("net.pth", shared_dictionaries, "no state dict"),
        ("net.pth", text, "it is a text file, '404: not found'"),
        ("net.pth", html, "it is an HTML page"),
        ("net.pth", empty, "it is an empty file"),
        ("net.pth", lambda path: None, "No such file or directory"),
        ("net.pth", torch_script, "it is a TorchScript archive"),
        ("net.pth", npz, "it is a NumPy archive (.npz)"),
        ("net.pth", onnx, "it is an ONNX model"),
        ("net.pth", lambda path: os.mkfifo(path), "it is no regular file"),
        ("net.safetensors", text, "it is a text file"),
        ("net.safetensors", truncated_safetensors, "incomplete"),
        ("net.safetensors", unknown_metadata_field, "from_the_future is not a known key"),
        ("net.safetensors", metadata_without_json, "is not JSON"),
        ("n" * 300, lambda path: None, "File name too long"),
    ],
)
def test_unreadable_file_is_reported_in_one_line(tmp_path, name, make, reason):
    make(tmp_path / name)
    problem = read_error(tmp_path / name).problem
    assert problem.startswith("Cannot read the checkpoint: ")
    assert reason in problem
    assert "\n" not in problem


def test_folder_without_deployed_network_is_reported(tmp_path):
    error = read_error(tmp_path)
    assert error.location == str(tmp_path / "deploy.safetensors")


@pytest.mark.parametrize(
    "make, type_name",
    [
        (lambda: [torch.ones(1)], "list"),
        (lambda: torch.ones(1), "Tensor"),
        (lambda: {"a": 1}, "dict"),
        (dict, "dict"),
    ],
)
def test_object_without_state_dict_is_reported(tmp_path, make, type_name):
    error = read_error(save_pth(tmp_path, make()))
    assert f"no state dict, but a {type_name}" in error.problem


@pytest.mark.parametrize(
    "access", [read_checkpoint, lambda path: write_torch(path, TENSORS)], ids=["r", "w"]
)
def test_missing_pytorch_is_reported_with_its_extra(tmp_path, monkeypatch, access):
    path = save_pth(tmp_path, {"a": torch.ones(1)})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r'pip install "torch>='):
        access(path)


# --- writing -----------------------------------------------------------------------------------

WRITES = {
    "safetensors": lambda path: write_safetensors(path, TENSORS, METADATA),
    "torch": lambda path: write_torch(path, TENSORS),
}
writes = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


@writes
def test_written_file_has_the_usual_permissions(tmp_path, write):
    (tmp_path / "touched").touch()
    write(tmp_path / "net")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["net"] == modes["touched"]


@writes
def test_unwritable_path_is_reported_and_nothing_is_left(tmp_path, write):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "net", tmp_path / "folder"):
        with pytest.raises(UnwritableFile) as caught:
            write(path)
        assert caught.value.location == str(path)
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder"}


@writes
def test_special_file_is_not_replaced(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnwritableFile, match="it is not a file"):
        write(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@writes
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, write):
    (tmp_path / "net").write_text("kept")

    def raise_no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", raise_no_space)
    with pytest.raises(UnwritableFile, match="No space left on device"):
        write(tmp_path / "net")
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert (tmp_path / "net").read_text() == "kept"


def test_every_field_of_the_metadata_is_written(tmp_path):
    fields = {
        field.name: f"not the default {field.name}"
        for field in dataclasses.fields(CheckpointMetadata)
    }
    fields |= {"form": "train", "hparams": {"channels": 48}, "data_range": 255.0, "scale": 2}
    fields |= {"source_sha256": 64 * "0", "tensors_sha256": 64 * "1", "parity_report": {"a": [1]}}
    write_safetensors(tmp_path / "net.safetensors", TENSORS, CheckpointMetadata(**fields))
    assert vars(read_checkpoint(tmp_path / "net.safetensors").metadata) == fields
