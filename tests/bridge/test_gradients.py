"""Gradients and optimizer steps: equal ones of JAX and PyTorch pass, different ones fail."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from esrjax.bridge import pytorch
from esrjax.bridge.gradients import compare_gradients, compare_optimizer
from esrjax.bridge.rule import OptimizerPair

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
    torch_w = pytorch.optimizer_step("Muon", MUON_KWARGS, {"w": w.T}, {"w": g.T})["w"]
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
