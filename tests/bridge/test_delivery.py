"""Official checkpoints are exported as they were published, and differences are listed."""

from pathlib import Path

import numpy as np
import pytest

from esrjax import registry
from esrjax.bridge.delivery import export_official, state_dict_diffs
from esrjax.model import open_method
from esrjax.network import archive
from esrjax.network.naming import KeyMap
from esrjax.network.weights import to_state_dict

OFFICIAL = {"span": "team00_SPAN.pth", "spanv2": "team22_spanv2_c2.pth", "dscf": "team23_DSCF.pth"}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """The folder of a run with a SPANV2 of four channels."""
    method = registry.get_method("spanv2")
    net = method.build(channels=4)
    metadata = archive.make_metadata("spanv2", method, "train", {"channels": 4})
    state_dict = to_state_dict(net, KeyMap(method.torch_names))
    archive.write_safetensors(tmp_path / "run/deploy.safetensors", state_dict, metadata)
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["span", "spanv2"])
def test_published_checkpoint_is_exported_unchanged(reference, monkeypatch, tmp_path, name):
    monkeypatch.setenv("ESRJAX_REFERENCE", str(reference))
    file = reference / "weights" / OFFICIAL[name]
    result = export_official(open_method(name, file), tmp_path / "out.pth")
    assert (result.reference_file, result.mismatches, result.form) == (file.name, (), "deploy")
    written, published = (
        archive.read_checkpoint(tmp_path / "out.pth"),
        archive.read_checkpoint(file),
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
