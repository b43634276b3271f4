"""A parity report can be verified, and verification fails when anything has changed."""

import json
import shutil

import numpy as np
import pytest

from esrjax.interop.parity_report import read
from esrjax.nn import checkpoint_io


@pytest.fixture
def weights(crumbs, tmp_path):
    return shutil.copy(crumbs / "crumbs/crumb.safetensors", tmp_path / "crumb.safetensors")


@pytest.fixture
def report_path(esrjax, crumbs, write_torch_file, weights, tmp_path):
    """A report of comparing the third-party method with a live PyTorch network."""
    args = ["--torch", f"{write_torch_file()}:Net", "--checkpoint", weights]
    assert esrjax("parity", "crumb", *args, "-o", tmp_path / "crumb.json").code == 0
    return tmp_path / "crumb.json"


def verify(esrjax, path):
    result = esrjax("parity", "verify", path, "--json")
    assert result.code == (not result.json["passed"]), result.err
    return result.json


def test_report_has_request_results_hashes_and_versions(report_path, weights):
    report = json.loads(report_path.read_text())
    assert report["request"]["method"] == "crumb"
    assert report["request"]["torch"].endswith("crumb.py:Net")
    draws = ["checkpoint", "seed 0", "seed 1", "seed 2"]
    images = {f"images, {draw}, {size}" for draw in draws for size in ("17x23", "24x18")}
    weights_keys = {"weights", *(f"weights, {draw}" for draw in draws)}
    assert set(report["hashes"]) == {"torch", *weights_keys, *images}
    assert report["checkpoint_sha256"] == checkpoint_io.read_checkpoint(weights).sha256
    assert {"python", "jax", "flax", "torch", "numpy", "esrjax"} <= set(report["versions"])
    assert report["tolerances"] == {"float32": 1e-4, "float64": 1e-9}
    assert report["passed"] is True and all(report["checks"].values())
    diff = report["results"]["diffs"][0]
    assert diff["max_abs_diff"] <= diff["tolerance"]


def test_unchanged_report_is_verified(esrjax, report_path):
    assert verify(esrjax, report_path) == {
        "method": "crumb",
        "passed": True,
        "reported_passed": True,
        "differences": [],
        "notes": [],
    }
    text = esrjax("parity", "verify", report_path).out
    assert text == "crumb: reproduced (reported equal to PyTorch)\n"


def test_moved_files_are_found_in_the_folder_of_the_report(
    esrjax, report_path, write_torch_file, weights, tmp_path
):
    (tmp_path / "moved").mkdir()
    for path in (report_path, write_torch_file(), weights):
        shutil.move(path, tmp_path / "moved")
    assert verify(esrjax, tmp_path / "moved/crumb.json")["passed"] is True


def test_changed_torch_file_is_reported_and_not_run(
    esrjax, report_path, write_torch_file, tmp_path
):
    write_torch_file(imports=f"open({str(tmp_path / 'ran')!r}, 'w')")
    result = verify(esrjax, report_path)
    (difference,) = result["differences"]
    assert difference.startswith("sha256 of torch: ") and result["passed"] is False
    assert not (tmp_path / "ran").exists()


def test_changed_weights_are_reported_and_a_rewritten_file_is_not(esrjax, report_path, weights):
    checkpoint = checkpoint_io.read_checkpoint(weights)
    checkpoint_io.write_safetensors(weights, checkpoint.state_dict, checkpoint.metadata)
    assert verify(esrjax, report_path)["passed"] is True
    checkpoint.state_dict["filter.bias"][0] += 1e-6
    checkpoint_io.write_safetensors(weights, checkpoint.state_dict, checkpoint.metadata)
    assert verify(esrjax, report_path)["differences"][0].startswith("sha256 of weights: ")


def test_other_check_and_other_version_are_reported(esrjax, report_path):
    report = json.loads(report_path.read_text())
    report["checks"]["layers"], report["versions"]["torch"] = False, "1.0"
    report_path.write_text(json.dumps(report))
    result = verify(esrjax, report_path)
    assert result["differences"] == ["layers: failed in the report, passed now"]
    assert result["notes"][0].startswith("version of torch: 1.0 in the report, ")


def test_report_of_an_older_format_is_read_and_not_verified(esrjax, report_path):
    report_path.write_text(report_path.read_text().replace('"format": 2', '"format": 1'))
    assert read(report_path).format == 1
    result = esrjax("parity", "verify", report_path)
    assert result.code == 2 and "format 1" in result.err


def test_report_of_a_failed_comparison_is_verified_as_failed(
    esrjax, crumbs, write_torch_file, weights, tmp_path
):
    path, args = tmp_path / "no.json", ["--checkpoint", weights]
    args += ["--torch", f"{write_torch_file(forward='y = y / 0 * 0')}:Net", "-o", path]
    assert esrjax("parity", "crumb", *args).code == 1
    assert read(path).passed is False and "layers" in read(path).checks
    result = verify(esrjax, path)
    assert (result["differences"], result["passed"]) == ([], False)


def test_report_is_stored_in_checkpoint_metadata(esrjax, crumbs, write_torch_file, weights):
    args = ["--torch", f"{write_torch_file()}:Net", "--checkpoint", weights]
    before = checkpoint_io.read_checkpoint(weights)
    assert esrjax("parity", "crumb", *args, "-o", weights).code == 0
    after = checkpoint_io.read_checkpoint(weights)
    assert after.metadata.parity_report["passed"] is True
    assert after.metadata.method == before.metadata.method
    assert all(
        np.array_equal(after.state_dict[key], value) for key, value in before.state_dict.items()
    )
    assert verify(esrjax, weights)["passed"] is True
    assert esrjax("method", "cost", "crumb", "--checkpoint", weights).code == 0


def test_report_of_a_golden_comparison(esrjax, crumbs, weights, tmp_path):
    golden, path = tmp_path / "golden.npz", tmp_path / "crumb.json"
    x = np.random.default_rng(0).random((1, 3, 8, 8), np.float32)
    np.savez(golden, x0=x, y0=np.zeros((1, 3, 32, 32), np.float32))
    args = ["--golden", golden, "--checkpoint", weights, "-o", path]
    assert esrjax("parity", "crumb", *args).code == 1
    assert read(path).checks == {"y0": False}
    np.savez(golden, x0=x, y0=np.ones((1, 3, 32, 32), np.float32))
    assert verify(esrjax, path)["differences"][0].startswith("sha256 of golden: ")
