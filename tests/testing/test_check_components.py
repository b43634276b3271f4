"""Checks of losses, optimizers and metric specs: ours pass, and each fault fails one by name."""

import jax
import pytest

from esrjax import registry
from esrjax.errors import NotFound, PluginError
from esrjax.testing import check_loss, check_metric, check_optimizer

LOSSES = """
import jax.numpy as jnp

def good(sr, hr):
    return jnp.mean(jnp.abs(sr - hr))
def per_image(sr, hr):
    return jnp.mean(jnp.abs(sr - hr), (1, 2, 3))
def similarity(sr, hr):
    return -jnp.mean(jnp.abs(sr - hr))
def norm(sr, hr):
    return jnp.mean(jnp.sqrt(jnp.sum(jnp.square(sr - hr), (1, 2, 3))))
def rounded(sr, hr):
    return jnp.mean(jnp.abs(jnp.round(255 * sr) - jnp.round(255 * hr)))
def total(sr, hr):
    return jnp.sum(jnp.abs(sr - hr))
"""
OPTIMIZERS = """
import jax
import jax.numpy as jnp
import optax

def good(cfg, schedule):
    return optax.chain(optax.add_decayed_weights(cfg.weight_decay), optax.sgd(schedule))
def ascent(cfg, schedule):
    return optax.scale(cfg.learning_rate)
def unscheduled(cfg, schedule):
    return optax.sgd(cfg.learning_rate)
def normalized(cfg, schedule):
    divide = lambda grads, params: jax.tree.map(lambda g: g / jnp.sqrt(jnp.sum(g * g)), grads)
    return optax.chain(optax.stateless(divide), optax.sgd(schedule))
def growing(cfg, schedule):
    def update(grads, state, params):
        return optax.sgd(schedule(0)).update(grads, (), params)[0], (*state, jnp.zeros(()))
    return optax.GradientTransformation(lambda params: (), update)
"""
METRICS = """
from esrjax.evaluation.metrics import Luma, MetricSpec
good = MetricSpec("good", "nobody", crop_border=2)
other_name = MetricSpec("ntire", "nobody", crop_border=0)
negative = MetricSpec("negative", "nobody", crop_border=-1)
constant = MetricSpec("constant", "nobody", luma=Luma("nothing", (0, 0, 0)))
"""


@pytest.fixture(autouse=True)
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # that of optax
        yield


def put(package, group, source):
    names = [line.split("(")[0].split()[-1] for line in source.splitlines() if line[:4] == "def "]
    names = names or [line.split()[0] for line in source.splitlines() if " = " in line]
    package("parts", source, group, {name: name for name in names})


def our_names(group):
    entries = registry.entry_points_by_name(group).items()
    return [name for name, (entry, *_) in entries if entry.value.startswith("esrjax.")]


@pytest.mark.parametrize("name", our_names(registry.LOSS_GROUP))
def test_our_losses_pass(name):
    check_loss(name)


@pytest.mark.parametrize("name", our_names(registry.OPTIMIZER_GROUP))
def test_our_optimizers_pass(name):
    fields = {"muon_learning_rate": 0.01} if name == "muadamw" else {}
    check_optimizer(name, weight_decay=0.1, **fields)


@pytest.mark.parametrize("name", our_names(registry.METRIC_GROUP))
def test_our_metric_specs_pass(name):
    check_metric(name)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("per_image", "Its value is a finite float32 scalar.*float32 \\(3,\\)"),
        ("similarity", "No image has a smaller loss.*noise has"),
        ("norm", "Its gradient for SR is finite.*infinite for equal images.*add an epsilon"),
        ("rounded", "Its gradient for SR is finite.*zero everywhere"),
        ("total", "is the mean of the losses of its images.*grad_accum_steps"),
    ],
)
def test_faults_of_losses(package, name, check):
    put(package, registry.LOSS_GROUP, LOSSES)
    check_loss("good")
    with pytest.raises(AssertionError, match=check):
        check_loss(name)


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("ascent", "Fifty steps reduce.*negative sign"),
        ("unscheduled", "while the schedule is zero.*an update is"),
        ("normalized", "Updates under jit are finite.*infinite for zero gradients"),
        ("growing", "Its state keeps structure"),
    ],
)
def test_faults_of_optimizers(package, name, check):
    put(package, registry.OPTIMIZER_GROUP, OPTIMIZERS)
    check_optimizer("good", weight_decay=0.1)
    with pytest.raises(AssertionError, match=check):
        check_optimizer(name)


def test_faults_of_metric_specs(package):
    put(package, registry.METRIC_GROUP, METRICS)
    check_metric("good")
    with pytest.raises(PluginError, match="'other_name' calls itself 'ntire'"):
        check_metric("other_name")
    with pytest.raises(AssertionError, match=r"PSNR and SSIM are finite.*crop_border at least 0"):
        check_metric("negative")
    with pytest.raises(AssertionError, match="lower for more noise"):
        check_metric("constant")


def test_unknown_name_is_reported():
    for check in (check_loss, check_optimizer, check_metric):
        with pytest.raises(NotFound, match="'l2'"):
            check("l2")
