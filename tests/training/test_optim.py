"""Optimisers and schedules against statements in NumPy, and against PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from esrjax.training import optim
from esrjax.training.recipe import Optimiser, Schedule

SAID = {
    "adam": Optimiser(name="adam", lr=1e-2),
    "adam, decay": Optimiser(name="adam", lr=1e-2, b2=0.99, weight_decay=0.1),
    "adamw": Optimiser(name="adamw", lr=1e-2, b1=0.8, b2=0.99, eps=1e-6, weight_decay=0.1),
}


def adam(said, w, gradients, rates):
    """Kingma and Ba, algorithm 1; with decay, Loshchilov and Hutter, algorithm 2."""
    coupled, decoupled = said.weight_decay * np.array([said.name == "adam", said.name == "adamw"])
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        g = g + coupled * w
        m = said.b1 * m + (1 - said.b1) * g
        v = said.b2 * v + (1 - said.b2) * g * g
        direction = (m / (1 - said.b1**t)) / (np.sqrt(v / (1 - said.b2**t)) + said.eps)
        w = w - rate * (direction + decoupled * w)
    return w


def steps(rule, w, gradients):
    """Where the rule takes `w`."""
    ours, state = jnp.asarray(w), rule.init(jnp.asarray(w))
    for g in gradients:
        updates, state = rule.update(jnp.asarray(g), state, ours)
        ours = optax.apply_updates(ours, updates)
    return np.asarray(ours)


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_three_steps_equal_the_statement(said):
    draw = np.random.default_rng(0)
    w, gradients = draw.standard_normal(7), draw.standard_normal((3, 7))
    with jax.enable_x64(True):
        rate = optim.schedule(Schedule(name="cosine"), said.lr, 3)
        ours = steps(optim.optimiser(said, rate), w, gradients)
    rates = [said.lr * (1 + math.cos(math.pi * t / 3)) / 2 for t in range(3)]
    np.testing.assert_allclose(ours, adam(said, w, gradients, rates), rtol=1e-12)


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
def test_five_steps_equal_pytorchs(said):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    draw = np.random.default_rng(1)
    w, gradients = draw.standard_normal(7), draw.standard_normal((5, 7))
    theirs = torch.tensor(w)
    rule = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[said.name](
        [theirs], said.lr, (said.b1, said.b2), said.eps, said.weight_decay
    )
    for g in gradients:
        theirs.grad = torch.tensor(g)
        rule.step()
    with jax.enable_x64(True):
        ours = steps(optim.optimiser(said, optax.constant_schedule(said.lr)), w, gradients)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-12)


def rates(said, lr, steps):
    schedule = optim.schedule(said, lr, steps)
    return [float(schedule(t)) for t in range(steps)]


def half_cosine(high, low, steps):
    return [low + (high - low) * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]


def test_constant():
    assert rates(Schedule(), 0.5, 3) == [0.5, 0.5, 0.5]


def test_cosine_ends_at_its_end():
    said = Schedule(name="cosine", end_lr=0.1)
    assert rates(said, 1.0, 8) == pytest.approx(half_cosine(1.0, 0.1, 8), rel=1e-6)


def test_cosine_with_weighted_restarts():
    said = Schedule(name="cosine", restarts=(6,), restart_weights=(1.0, 0.5), end_lr=0.1)
    expected = half_cosine(1.0, 0.1, 6) + half_cosine(0.5, 0.1, 4)
    assert rates(said, 1.0, 10) == pytest.approx(expected, rel=1e-6)


def test_multistep():
    said = Schedule(name="multistep", milestones=(2, 4), gamma=0.1)
    assert rates(said, 1.0, 6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-6)


def test_warmup_comes_first_and_the_rest_is_shorter():
    said = Schedule(name="cosine", warmup_steps=4)
    expected = [0.0, 0.25, 0.5, 0.75, *half_cosine(1.0, 0.0, 6)]
    assert rates(said, 1.0, 10) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_halving():
    said = Schedule(name="halving", every=2)
    assert rates(said, 1.0, 6) == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25], rel=1e-6)


def test_halving_counts_from_the_end_of_the_warmup():
    said = Schedule(name="halving", every=2, gamma=0.1, warmup_steps=1)
    assert rates(said, 1.0, 5) == pytest.approx([0, 1, 1, 0.1, 0.1], rel=1e-6)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"warmup_steps": 10}, "a warm-up of 10 steps in a stage of 10 steps"),
        ({"name": "cosine", "restarts": (4, 10)}, "the restart at 10 in a stage of 10 steps"),
        ({"name": "cosine", "restarts": (6,), "warmup_steps": 4}, "the restart at 6"),
    ],
)
def test_a_schedule_fits_into_its_stage(said, complaint):
    with pytest.raises(optim.ScheduleTooLong) as error:
        optim.schedule(Schedule(**said), 1.0, 10)
    assert complaint in str(error.value) and "count from its end" in str(error.value)
