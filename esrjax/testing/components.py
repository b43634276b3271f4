"""Conformance checks that every loss, optimizer and metric spec of a package must pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from esrjax import registry
from esrjax.errors import list_some
from esrjax.evaluation import metrics
from esrjax.nn.layers import Conv2d
from esrjax.testing.methods import (
    FLOAT32_TOLERANCE,
    FLOAT64_TOLERANCE,
    assert_all_pass,
    run_check,
)
from esrjax.training.losses import Loss
from esrjax.training.optim import make_optimizer
from esrjax.training.recipe import Optimizer

# --- checks of a loss ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _LossFixture:
    """A loss, and the images that it compares, float32 (n, h, w, 3) in [0, 1]."""

    loss: Loss
    sr: Any
    hr: Any


def check_loss(name: str, *, patch_size: tuple[int, int] = (32, 48)) -> None:
    """Check that a loss keeps the contract of the group `esrjax.losses`.

    Args:
        name: The name under which a package registers it.
        patch_size: Height and width of the HR patches that it is called with.

    Raises:
        AssertionError: With every check that fails, by how much, and a remedy.
        UserError: No package registers the name, or its entry point cannot be loaded.
    """
    loss: Loss = registry.get_component(registry.LOSS_GROUP, name, "loss", Callable)
    rng = np.random.default_rng(0)
    hr = rng.random((3, *patch_size, 3), np.float32)
    sr = hr + 0.1 * rng.standard_normal(hr.shape, np.float32)  # as networks, beyond [0, 1] too
    fixture = _LossFixture(loss=loss, sr=jnp.asarray(sr), hr=jnp.asarray(hr))
    results = [run_check(check, remedy, fixture) for check, remedy in LOSS_CHECKS.items()]
    assert_all_pass(f"the loss {name!r}", results)


def _loss_is_a_finite_scalar(fixture: _LossFixture) -> None:
    """Its value is a finite float32 scalar, under jit."""
    value = jax.jit(fixture.loss)(fixture.sr, fixture.hr)
    assert (value.shape, value.dtype) == ((), jnp.float32), f"it is {value.dtype} {value.shape}"
    assert jnp.isfinite(value), f"it is {value}"


def _loss_is_least_for_equal_images(fixture: _LossFixture) -> None:
    """No image has a smaller loss than HR itself."""
    loss, hr = jax.jit(fixture.loss), fixture.hr
    least = float(loss(hr, hr))
    tolerance = FLOAT32_TOLERANCE * max(1, abs(least))
    images = {"noise": fixture.sr, "less noise": (fixture.sr + 9 * hr) / 10}
    images |= {"a brighter image": hr + 0.1, "a shifted image": jnp.roll(hr, 1, 1)}
    values = {name: float(loss(image, hr)) for name, image in images.items()}
    smaller = [f"{name} has {x:.6g}" for name, x in values.items() if x < least - tolerance]
    assert not smaller, f"equal images have {least:.6g}, {list_some(smaller)}"


def _loss_has_gradients(fixture: _LossFixture) -> None:
    """Its gradient for SR is finite, for equal images too, and not zero for others."""
    grad = jax.jit(jax.grad(fixture.loss))
    for place, sr in (("for noise", fixture.sr), ("for equal images", fixture.hr)):
        num_invalid = int(jnp.sum(~jnp.isfinite(grad(sr, fixture.hr))))
        assert not num_invalid, f"{num_invalid} of {sr.size} values are NaN or infinite {place}"
    assert jnp.any(grad(fixture.sr, fixture.hr)), "it is zero everywhere"


def _loss_is_a_mean_over_images(fixture: _LossFixture) -> None:
    """The loss of a batch is the mean of the losses of its images."""
    sr, hr = fixture.sr, fixture.hr
    losses = [float(fixture.loss(x[None], y[None])) for x, y in zip(sr, hr, strict=True)]
    value, mean = float(fixture.loss(sr, hr)), float(np.mean(losses))
    assert abs(value - mean) <= FLOAT32_TOLERANCE * max(1, abs(mean)), (
        f"it is {value:.6g} for {len(losses)} images, and their mean is {mean:.6g}"
    )


LOSS_CHECKS: Mapping[Callable[[_LossFixture], None], str] = {  # each with its remedy
    _loss_is_a_finite_scalar: "return the mean over all axes, computed with jax.numpy from "
    "(sr, hr), (n, h, w, 3) in [0, 1]",
    _loss_is_least_for_equal_images: "return a distance: 0, or its least value, where SR equals HR",
    _loss_has_gradients: "add an epsilon within sqrt and norms, whose gradient at 0 is infinite, "
    "and use no rounding or stop_gradient of SR",
    _loss_is_a_mean_over_images: "average over axis 0: devices and micro-batches "
    "(grad_accum_steps) average the losses of their parts of a batch",
}


# --- checks of an optimizer ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _OptimizerFixture:
    """An optimizer at its own and at a zero learning rate, with parameters and gradients."""

    optimizer: optax.GradientTransformation
    at_rest: optax.GradientTransformation
    params: Any
    grads: Any


def check_optimizer(name: str, **fields: Any) -> None:
    """Check that an optimizer keeps the contract of the group `esrjax.optimizers`.

    Args:
        name: The name under which a package registers it.
        **fields: Further fields of the recipe's optimizer, for instance `weight_decay=0.1`; by
            default the learning rate is 0.01.

    Raises:
        AssertionError: With every check that fails, and a remedy.
        UserError: No package registers the name, or its entry point cannot be loaded.
        pydantic.ValidationError: The recipe's optimizer has no such field, or another type.
    """
    registry.get_component(registry.OPTIMIZER_GROUP, name, "optimizer", Callable)
    values: dict[str, Any] = {"name": name, "learning_rate": 1e-2}
    cfg = Optimizer(**(values | fields))
    conv = nnx.state(Conv2d(3, 8, rngs=nnx.Rngs(0)), nnx.Param)
    network = {"conv": conv, "gain": jnp.ones(())}  # matrix, vector and scalar
    params = {"network": network, "adapters": (jnp.zeros((8, 4)), None)}
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)
    fixture = _OptimizerFixture(
        optimizer=make_optimizer(cfg, optax.constant_schedule(cfg.learning_rate)),
        at_rest=make_optimizer(cfg, optax.constant_schedule(0.0)),
        params=params,
        grads=grads,
    )
    results = [run_check(check, remedy, fixture) for check, remedy in OPTIMIZER_CHECKS.items()]
    assert_all_pass(f"the optimizer {name!r}", results)


def _updates_are_finite(fixture: _OptimizerFixture) -> None:
    """Updates under jit are finite, and have the shapes and dtypes of the parameters."""
    params, update = fixture.params, jax.jit(fixture.optimizer.update)
    state = fixture.optimizer.init(params)
    for grads in (jax.tree.map(jnp.zeros_like, params), fixture.grads, fixture.grads):
        updates, state = update(grads, state, params)
        assert _types(updates) == _types(params), "shapes, dtypes or structure differ"
        finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(updates))
        assert finite, "NaN or infinite" + " for zero gradients" * (grads is not fixture.grads)
        params = optax.apply_updates(params, updates)


def _state_keeps_its_types(fixture: _OptimizerFixture) -> None:
    """Its state keeps structure, shapes and dtypes from step to step."""
    state = jax.eval_shape(fixture.optimizer.init, fixture.params)
    _, next_state = jax.eval_shape(fixture.optimizer.update, fixture.grads, state, fixture.params)
    assert _types(next_state) == _types(state), "they differ after a step"


def _types(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _follows_the_schedule(fixture: _OptimizerFixture) -> None:
    """Nothing changes while the schedule is zero, as at the start of a warm-up."""
    state = fixture.at_rest.init(fixture.params)
    updates, _ = jax.jit(fixture.at_rest.update)(fixture.grads, state, fixture.params)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(updates))
    assert largest == 0, f"an update is {largest:.2g}"


def _reduces_a_loss(fixture: _OptimizerFixture) -> None:
    """Fifty steps reduce a quadratic loss."""
    targets = fixture.grads

    def loss(params: Any) -> Any:
        return optax.tree.norm(jax.tree.map(jnp.subtract, params, targets), squared=True)

    def step(_: Any, carry: Any) -> Any:
        params, state = carry
        updates, state = fixture.optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    start = fixture.params, fixture.optimizer.init(fixture.params)
    params, _ = jax.jit(lambda carry: jax.lax.fori_loop(0, 50, step, carry))(start)
    before, after = float(loss(fixture.params)), float(loss(params))
    assert after < before, f"from {before:.6g} to {after:.6g}"


OPTIMIZER_CHECKS: Mapping[Callable[[_OptimizerFixture], None], str] = {  # each with its remedy
    _updates_are_finite: "return an optax.GradientTransformation whose update takes (grads, state, "
    "params); guard divisions by norms, which may be zero",
    _state_keeps_its_types: "create the whole state in init, with dtypes that update keeps: a "
    "training step is compiled once, and its checkpoints have the structure of the start",
    _follows_the_schedule: "multiply updates, weight decay included, by the schedule that is the "
    "second argument, at the step, and not by cfg.learning_rate",
    _reduces_a_loss: "return updates that are added to the parameters: with a negative sign",
}


# --- checks of a metric spec ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _MetricFixture:
    """A metric spec, and HR and SR images with less and more noise, uint8 (h, w, 3)."""

    spec: metrics.MetricSpec
    hr: Any
    less_noise: Any
    more_noise: Any


def check_metric(name: str) -> None:
    """Check that a metric spec of the group `esrjax.metrics` defines PSNR and SSIM.

    Args:
        name: The name under which a package registers it.

    Raises:
        AssertionError: With every check that fails, and a remedy.
        UserError: No package registers the name, or its entry point cannot be loaded.
    """
    spec = metrics.get_spec(name)
    rng = np.random.default_rng(0)
    hr = rng.integers(64, 192, (96, 88, 3))
    noise = rng.integers(-4, 5, hr.shape)
    images = [(hr + factor * noise).astype(np.uint8) for factor in (0, 1, 4)]
    fixture = _MetricFixture(spec=spec, hr=images[0], less_noise=images[1], more_noise=images[2])
    results = [run_check(check, remedy, fixture) for check, remedy in METRIC_CHECKS.items()]
    assert_all_pass(f"the metric spec {name!r}", results)


def _metric_decreases_with_noise(fixture: _MetricFixture) -> None:
    """PSNR and SSIM are finite, best for equal images, and lower for more noise, at x2, x3, x4."""
    images = (fixture.hr, fixture.less_noise, fixture.more_noise)
    for spec in map(fixture.spec.at_scale, (2, 3, 4)):
        for metric in (metrics.psnr, metrics.ssim):
            values = [metric(sr, fixture.hr, spec) for sr in images]
            text = f"{metric.__name__} is {', '.join(f'{value:.4g}' for value in values)}"
            assert np.isfinite(values[1:]).all() and values[0] > values[1] > values[2], text


def _ssim_of_equal_images_is_one(fixture: _MetricFixture) -> None:
    """SSIM of equal images is 1."""
    value = metrics.ssim(fixture.hr, fixture.hr, fixture.spec)
    assert abs(value - 1) < FLOAT64_TOLERANCE, f"it is {value:.6g}"


METRIC_CHECKS: Mapping[Callable[[_MetricFixture], None], str] = {  # each with its remedy
    _metric_decreases_with_noise: "correct the fields of the MetricSpec: crop_border at least 0 "
    "pixels, peak 255, weights of luma with a positive sum",
    _ssim_of_equal_images_is_one: "correct window_size, sigma and peak of the MetricSpec",
}
