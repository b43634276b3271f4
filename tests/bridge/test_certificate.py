"""A certificate says enough to be asked again, and stops being true when anything changes."""

import json
import shutil

import numpy as np
import pytest

from esrjax.bridge.certificate import read
from esrjax.network import archive


@pytest.fixture
def weights(crumbs, tmp_path):
    return shutil.copy(crumbs / "crumbs/crumb.safetensors", tmp_path / "crumb.safetensors")


@pytest.fixture
def certified(esrjax, crumbs, written, weights, tmp_path):
    """A live certificate of the third-party method."""
    words = ["--torch", f"{written()}:Net", "--checkpoint", weights]
    assert esrjax("parity", "crumb", *words, "-o", tmp_path / "crumb.json").code == 0
    return tmp_path / "crumb.json"


def verified(esrjax, path):
    said = esrjax("parity", "verify", path, "--json")
    assert said.code == (not said.json["passed"]), said.err
    return said.json


def test_it_says_what_was_asked_of_what_and_with_what(certified, weights):
    said = json.loads(certified.read_text())
    assert said["question"]["method"] == "crumb"
    assert said["question"]["torch"].endswith("crumb.py:Net")
    assert set(said["hashes"]) == {"weights", "torch", "picture", "noise"}
    assert said["checkpoint_sha256"] == archive.read(weights).sha256
    assert {"python", "jax", "flax", "torch", "numpy", "esrjax"} <= set(said["versions"])
    assert said["tolerances"] == {"float32": 1e-4, "float64": 1e-9}
    assert said["passed"] is True and all(said["verdicts"].values())
    assert said["results"]["cases"][0]["max_abs"] <= said["results"]["cases"][0]["allowed"]


def test_what_is_as_it_was_is_verified(esrjax, certified):
    assert verified(esrjax, certified) == {
        "method": "crumb",
        "passed": True,
        "certified": True,
        "differences": [],
        "notes": [],
    }
    assert esrjax("parity", "verify", certified).out == "crumb: as certified (equal to PyTorch)\n"


def test_it_is_found_beside_what_it_is_about(esrjax, certified, written, weights, tmp_path):
    (tmp_path / "moved").mkdir()
    for path in (certified, written(), weights):
        shutil.move(path, tmp_path / "moved")
    assert verified(esrjax, tmp_path / "moved/crumb.json")["passed"] is True


def test_a_changed_network_is_not_even_run(esrjax, certified, written, tmp_path):
    written(imports=f"open({str(tmp_path / 'ran')!r}, 'w')")
    found = verified(esrjax, certified)
    (difference,) = found["differences"]
    assert difference.startswith("sha256 of torch: ") and found["passed"] is False
    assert not (tmp_path / "ran").exists()


def test_changed_weights_are_told_and_a_rewritten_file_is_not(esrjax, certified, weights):
    held = archive.read(weights)
    archive.write_safetensors(weights, held.tensors, held.manifest)
    assert verified(esrjax, certified)["passed"] is True
    held.tensors["filter.bias"][0] += 1e-6
    archive.write_safetensors(weights, held.tensors, held.manifest)
    assert verified(esrjax, certified)["differences"][0].startswith("sha256 of weights: ")


def test_another_verdict_and_another_version_are_told(esrjax, certified):
    said = json.loads(certified.read_text())
    said["verdicts"]["layers"], said["versions"]["torch"] = False, "1.0"
    certified.write_text(json.dumps(said))
    found = verified(esrjax, certified)
    assert found["differences"] == ["layers: not equal in the certificate, equal now"]
    assert found["notes"][0].startswith("version of torch: 1.0 in the certificate, ")


def test_a_failure_is_certified_as_one(esrjax, crumbs, written, weights, tmp_path):
    path, words = tmp_path / "no.json", ["--checkpoint", weights]
    words += ["--torch", f"{written(ran='y = y / 0 * 0')}:Net", "-o", path]
    assert esrjax("parity", "crumb", *words).code == 1
    assert read(path).passed is False and "layers" in read(path).verdicts
    found = verified(esrjax, path)
    assert (found["differences"], found["passed"]) == ([], False)


def test_it_travels_in_the_manifest_of_the_weights(esrjax, crumbs, written, weights):
    words = ["--torch", f"{written()}:Net", "--checkpoint", weights]
    before = archive.read(weights)
    assert esrjax("parity", "crumb", *words, "-o", weights).code == 0
    after = archive.read(weights)
    assert after.manifest.certificate["passed"] is True
    assert after.manifest.method == before.manifest.method
    assert all(np.array_equal(after.tensors[key], held) for key, held in before.tensors.items())
    assert verified(esrjax, weights)["passed"] is True
    assert esrjax("cost", "crumb", "--checkpoint", weights).code == 0


def test_a_stored_comparison_is_certified_too(esrjax, crumbs, weights, tmp_path):
    golden, path = tmp_path / "golden.npz", tmp_path / "crumb.json"
    x = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    np.savez(golden, x0=x, y0=np.zeros((1, 3, 32, 32), np.float32))
    words = ["--golden", golden, "--checkpoint", weights, "-o", path]
    assert esrjax("parity", "crumb", *words).code == 1
    assert read(path).verdicts == {"y0": False}
    np.savez(golden, x0=x, y0=np.ones((1, 3, 32, 32), np.float32))
    assert verified(esrjax, path)["differences"][0].startswith("sha256 of golden: ")
