"""Weights leave as the published file has them, and every departure from it is told."""

from pathlib import Path

import numpy as np
import pytest

from esrjax import registry
from esrjax.bridge.delivery import deliver, departures
from esrjax.model import open_method
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.weights import tensors

OFFICIAL = {"span": "team00_SPAN.pth", "spanv2": "team22_spanv2_c2.pth", "dscf": "team23_DSCF.pth"}


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A run's folder with a SPANV2 of four channels, in both forms."""
    method = registry.plain("spanv2")
    net = method.build(channels=4)
    said = archive.describe("spanv2", method, "train", {"channels": 4})
    held = tensors(net, Naming(method.torch_names))
    archive.write_safetensors(tmp_path / "run/deploy.safetensors", held, said)
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["span", "spanv2"])
def test_a_published_checkpoint_is_its_own_delivery(reference, monkeypatch, tmp_path, name):
    monkeypatch.setenv("ESRJAX_REFERENCE", str(reference))
    file = reference / "weights" / OFFICIAL[name]
    done = deliver(open_method(name, file), tmp_path / "out.pth")
    assert (done.against, done.departures, done.form) == (file.name, (), "deploy")
    ours, theirs = archive.read(tmp_path / "out.pth"), archive.read(file)
    assert ours.sha256 == done.sha256
    assert all(np.array_equal(ours.tensors[key], value) for key, value in theirs.tensors.items())


def test_without_the_published_file_our_own_network_is_asked(monkeypatch, tmp_path, narrow):
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    done = deliver(open_method("spanv2", narrow), tmp_path / "out.pth")
    assert (done.against, done.departures, done.form) == (None, (), "deploy")
    assert done.words == (
        f"{done.tensors} tensors load strictly into our own network; no published checkpoint of "
        "these sizes is at hand"
    )


def test_a_key_a_shape_and_a_type_that_differ_are_told():
    published = {"a": np.zeros(3, np.float32), "b": np.zeros((2, 2)), "c": np.zeros(1)}
    written = {"a": np.zeros(3), "b": np.zeros((2, 3)), "d": np.zeros(1)}
    assert set(departures(written, published)) == {
        "c is missing",
        "d is not asked for",
        "a is float64 (3,), published float32 (3,)",
        "b is float64 (2, 3), published float64 (2, 2)",
    }
    assert not list(departures(published, published))
