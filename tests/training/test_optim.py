"""Optimizers and schedules, compared with NumPy references and with PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from esrjax.training import optim
from esrjax.training.recipe import Optimizer, Schedule

CONFIGS = {
    "adam": Optimizer(name="adam", learning_rate=1e-2),
    "adam, decay": Optimizer(name="adam", learning_rate=1e-2, b2=0.99, weight_decay=0.1),
    "adamw": Optimizer(
        name="adamw", learning_rate=1e-2, b1=0.8, b2=0.99, eps=1e-6, weight_decay=0.1
    ),
}


def adam(cfg, w, grads, rates):
    """Kingma and Ba, algorithm 1; with weight decay, Loshchilov and Hutter, algorithm 2."""
    coupled, decoupled = cfg.weight_decay * np.array([cfg.name == "adam", cfg.name == "adamw"])
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), start=1):
        g = g + coupled * w
        m = cfg.b1 * m + (1 - cfg.b1) * g
        v = cfg.b2 * v + (1 - cfg.b2) * g * g
        direction = (m / (1 - cfg.b1**t)) / (np.sqrt(v / (1 - cfg.b2**t)) + cfg.eps)
        w = w - rate * (direction + decoupled * w)
    return w


def apply_steps(optimizer, w, grads):
    """Return `w` after one step per gradient."""
    params, state = jnp.asarray(w), optimizer.init(jnp.asarray(w))
    for g in grads:
        updates, state = optimizer.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_three_steps_equal_the_reference(cfg):
    rng = np.random.default_rng(0)
    w, grads = rng.standard_normal(7), rng.standard_normal((3, 7))
    with jax.enable_x64(True):
        lr_schedule = optim.make_schedule(Schedule(name="cosine"), cfg.learning_rate, 3)
        result = apply_steps(optim.make_optimizer(cfg, lr_schedule), w, grads)
    rates = [cfg.learning_rate * (1 + math.cos(math.pi * t / 3)) / 2 for t in range(3)]
    np.testing.assert_allclose(result, adam(cfg, w, grads, rates), rtol=1e-12)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
def test_five_steps_equal_pytorch(cfg):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    rng = np.random.default_rng(1)
    w, grads = rng.standard_normal(7), rng.standard_normal((5, 7))
    torch_w = torch.tensor(w)
    torch_optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[cfg.name](
        [torch_w], cfg.learning_rate, (cfg.b1, cfg.b2), cfg.eps, cfg.weight_decay
    )
    for g in grads:
        torch_w.grad = torch.tensor(g)
        torch_optimizer.step()
    with jax.enable_x64(True):
        lr_schedule = optax.constant_schedule(cfg.learning_rate)
        result = apply_steps(optim.make_optimizer(cfg, lr_schedule), w, grads)
    np.testing.assert_allclose(result, torch_w.numpy(), rtol=0, atol=1e-12)


def rates(cfg, learning_rate, num_steps):
    schedule = optim.make_schedule(cfg, learning_rate, num_steps)
    return [float(schedule(t)) for t in range(num_steps)]


def half_cosine(high, low, num_steps):
    return [
        low + (high - low) * (1 + math.cos(math.pi * t / num_steps)) / 2 for t in range(num_steps)
    ]


def test_constant():
    assert rates(Schedule(), 0.5, 3) == [0.5, 0.5, 0.5]


def test_cosine_ends_at_end_learning_rate():
    cfg = Schedule(name="cosine", end_learning_rate=0.1)
    assert rates(cfg, 1.0, 8) == pytest.approx(half_cosine(1.0, 0.1, 8), rel=1e-6)


def test_cosine_with_weighted_restarts():
    cfg = Schedule(name="cosine", restarts=(6,), restart_weights=(1.0, 0.5), end_learning_rate=0.1)
    expected = half_cosine(1.0, 0.1, 6) + half_cosine(0.5, 0.1, 4)
    assert rates(cfg, 1.0, 10) == pytest.approx(expected, rel=1e-6)


def test_multistep():
    cfg = Schedule(name="multistep", milestones=(2, 4), gamma=0.1)
    assert rates(cfg, 1.0, 6) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-6)


def test_warmup_shortens_the_schedule():
    cfg = Schedule(name="cosine", warmup_steps=4)
    expected = [0.0, 0.25, 0.5, 0.75, *half_cosine(1.0, 0.0, 6)]
    assert rates(cfg, 1.0, 10) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_step():
    cfg = Schedule(name="step", step_size=2)
    assert rates(cfg, 1.0, 6) == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25], rel=1e-6)


def test_step_counts_from_the_end_of_the_warmup():
    cfg = Schedule(name="step", step_size=2, gamma=0.1, warmup_steps=1)
    assert rates(cfg, 1.0, 5) == pytest.approx([0, 1, 1, 0.1, 0.1], rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"warmup_steps": 10}, "warm-up of 10 steps in a stage of 10 steps"),
        ({"name": "cosine", "restarts": (4, 10)}, "restart at 10 in a stage of 10 steps"),
        ({"name": "cosine", "restarts": (6,), "warmup_steps": 4}, "restart at 6"),
    ],
)
def test_schedule_longer_than_its_stage_is_reported(fields, problem):
    with pytest.raises(optim.ScheduleTooLong) as error:
        optim.make_schedule(Schedule(**fields), 1.0, 10)
    assert problem in error.value.problem
