"""Files of tensors come back as they went, and bad ones are refused in words."""

import dataclasses
import hashlib
import os
import stat
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from esrjax.network import archive
from esrjax.network.archive import (
    Manifest,
    MissingExtra,
    UnreadableCheckpoint,
    UnwritableCheckpoint,
    read,
    write_safetensors,
    write_torch,
)

MANIFEST = Manifest(method="span", form="deploy", sizes={"channels": 28}, note="for the tests")
TENSORS = {
    "body.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "turned": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "count": np.array(7),
    "none": np.zeros((0, 3), np.float16),
}


class RunsCode:
    """Unpickled, it would make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype
        np.testing.assert_array_equal(ours[key], value, strict=True)


def saved(folder, held):
    path = folder / "net.pth"
    torch.save(held, path)
    return path


def refusal(path):
    """What the user is told."""
    with pytest.raises(UnreadableCheckpoint) as caught:
        read(path)
    assert str(path) in caught.value.place
    return caught.value


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("root", ["", *archive.ROOTS])
def test_a_pth_comes_back_from_under_its_root(tmp_path, root):
    path = tmp_path / "net.pth"
    write_torch(path, TENSORS, [root] if root else ())
    found = read(path)
    assert_same(found.tensors, TENSORS)
    assert found.manifest is None
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_roots_may_lie_in_each_other_and_beside_other_things(tmp_path):
    state = {"module.a.weight": torch.ones(2), "module.b.module.weight": torch.zeros(2)}
    held = {"epoch": 3, "optimizer": {"lr": torch.ones(1)}, "params": {"state_dict": state}}
    assert set(read(saved(tmp_path, held)).tensors) == {"a.weight", "b.module.weight"}


def test_trainable_and_bfloat16_tensors_are_read(tmp_path):
    third = torch.tensor(1 / 3, dtype=torch.bfloat16)
    found = read(saved(tmp_path, {"w": torch.nn.Parameter(torch.ones(2)), "b": third})).tensors
    assert_same(found, {"w": np.ones(2, np.float32), "b": np.array(0.333984375, np.float32)})


def test_a_safetensors_comes_back_with_its_manifest(tmp_path):
    path = tmp_path / "new" / "net.safetensors"
    half = {"half": np.ones(3, ml_dtypes.bfloat16)}
    write_safetensors(path, TENSORS | half, MANIFEST)
    found = read(path)
    assert_same(found.tensors, TENSORS | half)
    assert found.manifest == MANIFEST
    assert found.path == path


def test_a_safetensors_of_others_has_no_manifest(tmp_path):
    save_file({"a": np.ones(3)}, tmp_path / "net.safetensors", metadata={"format": "pt"})
    assert read(tmp_path / "net.safetensors").manifest is None


def test_a_run_directory_is_its_deployed_network(tmp_path):
    write_safetensors(tmp_path / "deploy.safetensors", TENSORS, MANIFEST)
    assert_same(read(tmp_path).tensors, TENSORS)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    path = saved(tmp_path, {"weight": torch.ones(1), "extra": RunsCode(tmp_path / "ran")})
    error = refusal(path)
    assert not (tmp_path / "ran").exists()
    assert error.problem == "this checkpoint would run code when loaded, so it was not loaded"
    assert "posix.mkdir" in error.rule
    assert error.remedy == "if you trust it, load it yourself and save net.state_dict() alone"


def truncated(path):
    torch.save({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-200])


def text(path):
    path.write_text("404: not found")


def empty(path):
    path.touch()


def other_manifest(path):
    said = '{"method": "span", "form": "deploy", "from_the_future": 1}'
    save_file({"a": np.ones(3)}, path, metadata={"esrjax": said})


def no_manifest(path):
    save_file({"a": np.ones(3)}, path, metadata={"esrjax": "no json"})


@pytest.mark.parametrize(
    "name, make, why",
    [
        ("net.pth", truncated, "PyTorch raised RuntimeError: "),
        ("net.pth", text, "not what torch.save writes"),
        ("net.pth", empty, "PyTorch raised EOFError"),
        ("net.pth", lambda path: None, "No such file or directory"),
        ("net.safetensors", text, "header"),
        ("net.safetensors", empty, "header"),
        ("net.safetensors", other_manifest, "from_the_future"),
        ("net.safetensors", no_manifest, "manifest is not one that this version writes"),
        ("n" * 300, lambda path: None, "File name too long"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, make, why):
    make(tmp_path / name)
    problem = refusal(tmp_path / name).problem
    assert problem.startswith("cannot read the checkpoint: ")
    assert why in problem
    assert "\n" not in problem


def test_a_folder_without_a_deployed_network_is_refused(tmp_path):
    error = refusal(tmp_path)
    assert error.place == str(tmp_path / "deploy.safetensors")


@pytest.mark.parametrize(
    "held, kind",
    [([torch.ones(1)], "list"), (torch.ones(1), "Tensor"), ({"a": 1}, "dict"), ({}, "dict")],
)
def test_what_is_no_state_dict_is_refused(tmp_path, held, kind):
    error = refusal(saved(tmp_path, held))
    assert error.problem == f"cannot read the checkpoint: it holds a {kind}"


@pytest.mark.parametrize("act", [read, lambda path: write_torch(path, TENSORS)], ids=["r", "w"])
def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch, act):
    path = saved(tmp_path, {"a": torch.ones(1)})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r'pip install "esrjax\[torch\]"'):
        act(path)


# --- writing -----------------------------------------------------------------------------------

WRITES = {
    "safetensors": lambda path: write_safetensors(path, TENSORS, MANIFEST),
    "torch": lambda path: write_torch(path, TENSORS),
}
writes = pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)


@writes
def test_a_written_file_is_as_readable_as_any(tmp_path, write):
    (tmp_path / "plain").touch()
    write(tmp_path / "net")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes["net"] == modes["plain"]


@writes
def test_nothing_is_left_where_no_file_can_be(tmp_path, write):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "net", tmp_path / "folder"):
        with pytest.raises(UnwritableCheckpoint) as caught:
            write(place)
        assert caught.value.place == str(place)
    assert {path.name for path in tmp_path.rglob("*")} == {"file", "folder"}


@writes
def test_what_is_there_but_no_file_is_not_replaced(tmp_path, write):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnwritableCheckpoint, match="it is not a file"):
        write(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@writes
def test_an_interrupted_write_keeps_the_old_file_alone(tmp_path, monkeypatch, write):
    (tmp_path / "net").write_text("kept")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.os, "replace", full)
    with pytest.raises(UnwritableCheckpoint, match="No space left on device"):
        write(tmp_path / "net")
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert (tmp_path / "net").read_text() == "kept"


def test_every_field_of_the_manifest_is_written(tmp_path):
    other = {
        field.name: {"channels": 48} if field.name == "sizes" else f"not the default {field.name}"
        for field in dataclasses.fields(Manifest)
    }
    write_safetensors(tmp_path / "net.safetensors", TENSORS, Manifest(**other))
    assert vars(read(tmp_path / "net.safetensors").manifest) == other
