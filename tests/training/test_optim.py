"""Optimisers and schedules against statements in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from esrjax.training import optim
from esrjax.training.recipe import Optimiser, Schedule


def adam(said, w, gradients, rates):
    """Kingma and Ba, algorithm 1; with decay, Loshchilov and Hutter, algorithm 2."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = said.b1 * m + (1 - said.b1) * g
        v = said.b2 * v + (1 - said.b2) * g * g
        direction = (m / (1 - said.b1**t)) / (np.sqrt(v / (1 - said.b2**t)) + said.eps)
        w = w - rate * (direction + said.weight_decay * w)
    return w


@pytest.mark.parametrize(
    "said",
    [
        Optimiser(name="adam", lr=1e-2),
        Optimiser(name="adamw", lr=1e-2, b1=0.8, b2=0.99, eps=1e-6, weight_decay=0.1),
    ],
    ids=lambda said: said.name,
)
def test_three_steps_equal_the_statement(said):
    draw = np.random.default_rng(0)
    w, gradients = draw.standard_normal(7), draw.standard_normal((3, 7))
    with jax.enable_x64(True):
        rate = optim.schedule(Schedule(name="cosine"), said.lr, 3)
        rule = optim.optimiser(said, rate)
        ours, state = jnp.asarray(w), rule.init(jnp.asarray(w))
        for g in gradients:
            updates, state = rule.update(jnp.asarray(g), state, ours)
            ours = optax.apply_updates(ours, updates)
        rates = [said.lr * (1 + math.cos(math.pi * t / 3)) / 2 for t in range(3)]
        np.testing.assert_allclose(ours, adam(said, w, gradients, rates), rtol=1e-12)


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
