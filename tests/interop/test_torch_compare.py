"""Gradients and optimizer steps: equal ones of JAX and PyTorch pass, different ones fail."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from PIL import Image

from esrjax.data.image_io import write_image
from esrjax.interop import torch_optim
from esrjax.interop.array_diff import OptimizerPair
from esrjax.interop.torch_compare import compare_gradients
from esrjax.interop.torch_optim import compare_optimizer

TWO_STEPS = (1.0, -0.5)
ADAMW_KWARGS = {"lr": 1e-3, "weight_decay": 0.01}
MUON_KWARGS = {"lr": 1e-3, "weight_decay": 0.0, "eps": 1e-30}


SHAPES = {"linear": (4, 9), "linear_t": (9, 4), "bias": (9,), "conv": (5, 3, 3, 3)}
AXES = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)


def muon(**kwargs):
    """optax's Muon for parameters `(out, in)`, as in PyTorch."""
    return contrib.muon(
        1e-3,
        eps=1e-30,
        muon_weight_dimension_numbers=lambda params: dict.fromkeys(params, AXES),
        **kwargs,
    )


def compare_steps(optimizer):
    """Compare steps of an optimizer for parameters with one, two and four axes."""
    rng = np.random.default_rng(0)
    weights, grads = (
        {key: stddev * rng.standard_normal(shape) for key, shape in SHAPES.items()}
        for stddev in (1.0, 1e-3)
    )
    with jax.enable_x64(True):
        return compare_optimizer(weights, grads, optimizer)


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerPair(
            torch_name="Adam",
            torch_kwargs={"lr": 1e-3},
            optax_tx=optax.adam(1e-3),
            grad_scales=TWO_STEPS,
        ),
        OptimizerPair(
            torch_name="AdamW",
            torch_kwargs=ADAMW_KWARGS,
            optax_tx=optax.adamw(1e-3, weight_decay=0.01),
            grad_scales=TWO_STEPS,
        ),
        OptimizerPair(torch_name="Muon", torch_kwargs=MUON_KWARGS, optax_tx=muon(), only_2d=True),
    ],
    ids=lambda optimizer: optimizer.torch_name,
)
def test_optax_optimizer_equals_pytorch(optimizer):
    (diff,) = compare_steps(optimizer)
    assert diff.passed and diff.precision == "float64"
    assert diff.name == f"weights after {optimizer.torch_name}"


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerPair(
            torch_name="Adam",
            torch_kwargs={"lr": 1e-3},
            optax_tx=optax.adam(1e-3, b1=0.8),
            grad_scales=TWO_STEPS,
        ),
        OptimizerPair(
            torch_name="Adam",
            torch_kwargs={"lr": 1e-3},
            optax_tx=optax.adam(1e-3, b2=0.99),
            grad_scales=TWO_STEPS,
        ),
        OptimizerPair(
            torch_name="Adam", torch_kwargs={"lr": 1e-3}, optax_tx=optax.adam(1e-3, eps=1e-7)
        ),
        OptimizerPair(
            torch_name="AdamW", torch_kwargs=ADAMW_KWARGS, optax_tx=optax.adamw(1e-3)
        ),  # decays by 1e-4
        OptimizerPair(
            torch_name="Muon", torch_kwargs=MUON_KWARGS, optax_tx=muon(ns_steps=4), only_2d=True
        ),
    ],
    ids=["b1", "b2", "eps", "decay", "iterations"],
)
def test_optimizer_with_other_hyperparameters_fails(optimizer):
    (diff,) = compare_steps(optimizer)
    assert not diff.passed


def newton_schulz(g, iterations=5):
    """Newton-Schulz iteration towards singular values of 1. Source: Muon (Jordan et al., 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[0] > g.shape[1]
    x = (g.T if tall else g) / np.linalg.norm(g)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (6, 6)])
def test_muon_of_both_frameworks_equals_its_formula(shape):
    rng = np.random.default_rng(1)
    w, g = rng.standard_normal(shape), rng.standard_normal(shape)
    expected = w - 1e-3 * max(1, shape[1] / shape[0]) ** 0.5 * newton_schulz(g)  # (in, out)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        optimizer = contrib.muon(1e-3, eps=1e-30)
        params = {"w": jnp.asarray(w)}
        updates, _ = optimizer.update({"w": jnp.asarray(g)}, optimizer.init(params), params)
        optax_w = np.asarray(params["w"] + updates["w"])
    pair = OptimizerPair(torch_name="Muon", torch_kwargs=MUON_KWARGS, optax_tx=optimizer)
    torch_w = torch_optim.optimizer_steps(pair, {"w": w.T}, {"w": g.T})["w"]
    np.testing.assert_allclose(optax_w, expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(torch_w.T, expected, rtol=0, atol=1e-14)


def test_gradient_with_the_largest_relative_difference_is_named():
    x_grad, param_grads = np.ones((1, 3, 4, 4)), {"a": np.ones(3), "b": np.full(4, 1e-2)}
    wrong_grads = {"a": param_grads["a"] + 5e-10, "b": param_grads["b"] + 1e-10}
    x_diff, worst_diff = compare_gradients((x_grad, wrong_grads), (x_grad, param_grads))
    assert (x_diff.passed, x_diff.max_abs_diff) == (True, 0.0)
    assert (worst_diff.worst_key, worst_diff.passed) == ("b", False)
    wrong_grads["a"][0] = np.nan
    assert compare_gradients((x_grad, wrong_grads), (x_grad, param_grads))[1].worst_key == "a"


# --- Comparison with a user's live PyTorch network on the command line ---


CHECKS = [
    "outputs, float64",
    "outputs, float32",
    "gradient, input, float64",
    "gradient, weights, float64",
    "outputs, train mode, float64",
    "gradient, input, train mode, float64",
    "gradient, weights, train mode, float64",
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
    assert diffs[1]["num_changed_u8"] == 0
    assert comparison["cases"] == [
        "checkpoint, 17x23",
        "checkpoint, 24x18",
        *(f"seed {seed}, {size}" for seed in range(3) for size in ("17x23", "24x18")),
        *(f"seed {seed}, 17x23, train mode" for seed in range(3)),
    ]
    assert layers["first_divergence"] is None and layers["num_compared"] == 4 * 11
    assert (comparison["quality"], comparison["notes"]) == (None, [])
    assert comparison["exercise"]["passed"] is True
    assert comparison["counts"]["differences"] == {}
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
    Image.fromarray(np.zeros((48, 40), np.uint8)).save(tmp_path / "dataset/a.png")
    result = run_parity(same, *args)
    quality = result.json["quality"]
    assert quality["lr_source"] == "bicubic from HR" and "LR: bicubic from HR\n" in result.err
    assert quality["notes"] == {"a": ["grey repeated in three channels"]}
    assert "a: grey repeated in three channels\n" in result.err
    assert (quality["num_images"], quality["num_values"]) == (2, 2 * 48 * 40 * 3)
    assert (quality["diff_mdb"], quality["num_changed_u8"], quality["passed"]) == (0.0, 0, True)
    other_quality = run_parity(other, *args).json["quality"]
    assert other_quality["diff_mdb"] != 0 and other_quality["num_changed_u8"] > 0
    assert other_quality["passed"] is False
    text = run_parity(same, "--data", tmp_path / "dataset").out
    assert "2 images, ntire: " in text and "+0.000 mdB; 0 of 11,520" in text


def test_jax_network_has_the_form_of_the_weights(make_pair):
    pairs = {form: make_pair("span", form) for form in ("train", "deploy", "both")}
    forms = {form: pair.form for form, pair in pairs.items()}
    assert forms == {"train": "train", "deploy": "deploy", "both": "deploy"}
    draw = pairs["both"].draws[0]  # branches in train mode, fused weights in eval mode
    assert draw.net is not draw.train_net
    assert {"conv_1.sk.weight", "conv_1.eval_conv.weight"} <= draw.state_dict.keys()


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
    assert result.json["layers"]["num_compared"] == 78 * 11


def test_missing_pytorch_is_reported(run_parity, write_torch_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run_parity(write_torch_file())
    assert result.code == 2
    assert "Comparison with a PyTorch network needs torch, which is not installed" in result.err
    assert 'pip install "torch>=' in result.err
