"""Optimisers of both sides move weights to the same place; what is not the same is told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from esrjax.bridge import pytorch
from esrjax.bridge.rule import Rule
from esrjax.bridge.slopes import compared, steps

TWICE = (1.0, -0.5)
DECAYED = {"lr": 1e-3, "weight_decay": 0.01}
PLAIN = {"lr": 1e-3, "weight_decay": 0.0, "eps": 1e-30}


SHAPES = {"narrow": (4, 9), "wide": (9, 4), "bias": (9,), "conv": (5, 3, 3, 3)}
AXES = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)


def muon(**said):
    """Of leaves `(out, in)`."""
    return contrib.muon(
        1e-3,
        eps=1e-30,
        muon_weight_dimension_numbers=lambda held: dict.fromkeys(held, AXES),
        **said,
    )


def moved(rule):
    """What a rule makes of leaves with one, two and four axes, ours beside PyTorch's."""
    draw = np.random.default_rng(0)
    held, slopes = (
        {key: size * draw.standard_normal(shape) for key, shape in SHAPES.items()}
        for size in (1.0, 1e-3)
    )
    with jax.enable_x64(True):
        return steps(held, slopes, rule)


@pytest.mark.parametrize(
    "rule",
    [
        Rule(theirs="Adam", said={"lr": 1e-3}, ours=optax.adam(1e-3), scales=TWICE),
        Rule(theirs="AdamW", said=DECAYED, ours=optax.adamw(1e-3, weight_decay=0.01), scales=TWICE),
        Rule(theirs="Muon", said=PLAIN, ours=muon(), matrices=True),
    ],
    ids=lambda rule: rule.theirs,
)
def test_ours_is_pytorchs(rule):
    (case,) = moved(rule)
    assert case.passed and case.precision == "float64"
    assert case.case == f"weights after {rule.theirs}"


@pytest.mark.parametrize(
    "rule",
    [
        Rule(theirs="Adam", said={"lr": 1e-3}, ours=optax.adam(1e-3, b1=0.8), scales=TWICE),
        Rule(theirs="Adam", said={"lr": 1e-3}, ours=optax.adam(1e-3, b2=0.99), scales=TWICE),
        Rule(theirs="Adam", said={"lr": 1e-3}, ours=optax.adam(1e-3, eps=1e-7)),
        Rule(theirs="AdamW", said=DECAYED, ours=optax.adamw(1e-3)),  # decays by 1e-4
        Rule(theirs="Muon", said=PLAIN, ours=muon(ns_steps=4), matrices=True),
    ],
    ids=["b1", "b2", "eps", "decay", "iterations"],
)
def test_an_optimiser_of_other_numbers_is_not(rule):
    (case,) = moved(rule)
    assert not case.passed


def orthogonal(g, iterations=5):
    """Newton and Schulz: singular values towards 1. Source: Muon (Jordan et al., 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[0] > g.shape[1]
    x = (g.T if tall else g) / np.linalg.norm(g)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (6, 6)])
def test_muon_is_what_it_is_said_to_be(shape):
    draw = np.random.default_rng(1)
    w, g = draw.standard_normal(shape), draw.standard_normal(shape)
    wanted = w - 1e-3 * max(1, shape[1] / shape[0]) ** 0.5 * orthogonal(g)  # (in, out)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        rule = contrib.muon(1e-3, eps=1e-30)
        held = {"w": jnp.asarray(w)}
        updates, _ = rule.update({"w": jnp.asarray(g)}, rule.init(held), held)
        ours = np.asarray(held["w"] + updates["w"])
    theirs = pytorch.stepped("Muon", PLAIN, {"w": w.T}, {"w": g.T})["w"]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-14)
    np.testing.assert_allclose(theirs.T, wanted, rtol=0, atol=1e-14)


def test_the_gradient_farthest_apart_is_named():
    by_input, by_weight = np.ones((1, 3, 4, 4)), {"a": np.ones(3), "b": np.full(4, 1e-2)}
    wrong = {"a": by_weight["a"] + 5e-10, "b": by_weight["b"] + 1e-10}
    whole, worst = compared((by_input, wrong), (by_input, by_weight))
    assert (whole.passed, whole.max_abs) == (True, 0.0)
    assert (worst.worst, worst.passed) == ("b", False)
    wrong["a"][0] = np.nan
    assert compared((by_input, wrong), (by_input, by_weight))[1].worst == "a"
