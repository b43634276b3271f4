"""Comparison with a user's live PyTorch network on the command line."""

import sys

import numpy as np
import pytest

from esrjax.data.image_io import write_image

CHECKS = [
    "image, float64",
    "noise, float64",
    "image, float32",
    "noise, float32",
    "gradient, input, float64",
    "gradient, weights, float64",
    "weights after Adam, float64",
    "weights after AdamW, float64",
]


@pytest.fixture
def run_parity(esrjax, crumbs):
    """Compare the third-party method with a PyTorch file: `run_parity(file, *args) -> result`."""
    return lambda file, *args: esrjax("parity", "crumb", "--torch", f"{file}:Net", *args)


def test_same_network_passes_every_check(run_parity, write_torch_file, crumbs):
    result = run_parity(
        write_torch_file(), "--checkpoint", crumbs / "crumbs/crumb.safetensors", "--json"
    )
    assert result.code == 0, result.err
    comparison = result.json
    assert (comparison["method"], comparison["form"], comparison["passed"]) == (
        "crumb",
        "deploy",
        True,
    )
    diffs, layers = comparison["diffs"], comparison["layers"]
    assert [f"{diff['name']}, {diff['precision']}" for diff in diffs] == CHECKS
    assert [diff["num_changed_u8"] for diff in diffs[2:4]] == [0, 0]
    assert layers["first_divergence"] is None and layers["num_compared"] == 4
    assert (comparison["quality"], comparison["notes"]) == (None, [])
    assert max(diff["max_abs_diff"] for diff in diffs) < 1e-6


def test_without_a_checkpoint_weights_are_random(run_parity, write_torch_file):
    assert run_parity(write_torch_file()).out.endswith("crumb, deploy form: equal to PyTorch\n")
    first, second = (
        run_parity(write_torch_file(), "--seed", seed, "--json").json for seed in (1, 2)
    )
    assert first["diffs"][0]["tolerance"] != second["diffs"][0]["tolerance"]


def test_hparams_and_torch_args_build_both_networks(run_parity, write_torch_file):
    args = ["--hparam", "kernel_size=5", "--torch-args", '{"kernel_size": 5}', "--json"]
    assert run_parity(write_torch_file(), *args).json["passed"] is True


def test_fault_is_reported_with_location_and_both_values(run_parity, write_torch_file):
    result = run_parity(write_torch_file(forward="y = y + 0.25 * (y == y.max())"))
    assert result.code == 1
    location = "in the forward of the network, after filter, before the end of the network\n"
    assert location in result.out
    assert "output at [" in result.out and "in JAX and " in result.out
    assert result.out.endswith("crumb, deploy form: not equal to PyTorch\n")


def test_float32_constant_is_distinguished_from_a_fault(run_parity, write_torch_file):
    result = run_parity(write_torch_file(forward="y = y + float(torch.tensor(3.3)) - 3.3"))
    assert result.code == 1 and "often a constant kept in float32" in result.out


def test_weights_without_gradient_are_noted(run_parity, write_torch_file):
    comparison = run_parity(
        write_torch_file(init="self.filter.bias.requires_grad = False"), "--json"
    ).json
    assert comparison["passed"] is True
    assert comparison["notes"] == ["PyTorch has no gradient for filter.bias: not compared"]


def test_cuda_calls_run_on_the_cpu_and_are_noted(run_parity, write_torch_file):
    file = write_torch_file(
        init='self.filter.cuda(); self.by = torch.ones(1, device="cuda")',
        forward='y = y * self.by.to("cuda:0")',
    )
    comparison = run_parity(file, "--json").json
    assert comparison["passed"] is True
    assert [note.rpartition(": ")[2] for note in comparison["notes"]] == (
        ["CUDA requested, CPU used"] * 2
    )
    assert f"{file}:11: self.filter.cuda()" in comparison["notes"][0]


def test_psnr_on_a_dataset_is_compared(run_parity, write_torch_file, tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        write_image(tmp_path / f"dataset/{name}.png", rng.integers(0, 256, (48, 40, 3), np.uint8))
    args = ["--data", tmp_path / "dataset", "--json"]
    same, other = write_torch_file(), write_torch_file("other.py", forward="y = y + 1 / 255")
    quality = run_parity(same, *args).json["quality"]
    assert (quality["num_images"], quality["num_values"]) == (2, 2 * 48 * 40 * 3)
    assert (quality["diff_mdb"], quality["num_changed_u8"], quality["passed"]) == (0.0, 0, True)
    other_quality = run_parity(other, *args).json["quality"]
    assert other_quality["diff_mdb"] != 0 and other_quality["num_changed_u8"] > 0
    assert other_quality["passed"] is False
    text = run_parity(same, "--data", tmp_path / "dataset").out
    assert "2 images, ntire: " in text and "+0.000 mdB; 0 of 11,520" in text


def test_jax_network_has_the_form_of_the_weights(make_pair):
    pair = make_pair("span", "train")
    keys = set(pair.torch_model.module.state_dict())
    assert "conv_1.sk.weight" in keys and "conv_1.eval_conv.weight" not in keys


def test_local_imports_of_the_torch_file_are_hashed(run_parity, write_torch_file, tmp_path):
    (tmp_path / "gain.py").write_text("GAIN = 1.0\n")
    file = write_torch_file(imports="from gain import GAIN", forward="y = y * GAIN")
    args = ["-o", tmp_path / "c.json"]
    assert run_parity(file, *args).code == 0
    assert '"torch import: gain.py"' in (tmp_path / "c.json").read_text()


def test_twin_with_official_weights_passes(esrjax, reference, request):
    file = request.path.parents[1] / "twins/spanv2.py"
    args = ["--checkpoint", reference / "weights/team22_spanv2_c2.pth", "--json"]
    result = esrjax("parity", "spanv2", "--torch", f"{file}:Twin", *args)
    assert result.code == 0, result.out
    assert result.json["layers"]["num_compared"] == 78


def test_missing_pytorch_is_reported(run_parity, write_torch_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run_parity(write_torch_file())
    assert result.code == 2
    assert "Comparison with a PyTorch network needs PyTorch" in result.err
    assert 'pip install "esrjax[torch]"' in result.err
