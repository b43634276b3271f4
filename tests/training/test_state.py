"""One step: what moves and what does not, however the batch goes through."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.network.weights import cast, leaves
from esrjax.training import recipe as recipes
from esrjax.training import state as states
from esrjax.training.devices import Devices
from esrjax.training.objective import Objective
from esrjax.training.origin import Held
from esrjax.training.recipe import LoRA
from esrjax.training.recipe import Teacher as Said
from esrjax.training.teacher import Teacher
from esrjax.training.work import adapters_of, optimiser_of

METHOD = registry.plain("spanv2")


@pytest.fixture
def stage(said):
    return recipes.parse(said).stage[0]


@pytest.fixture
def net():
    return METHOD.build(seed=0, channels=4)


def batch(count, side=6):
    draw = np.random.default_rng(0)
    lr = draw.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return jnp.asarray(lr), jnp.asarray(lr.repeat(4, 1).repeat(4, 2))


def objective_of(graph, stage, teacher=None):
    return Objective(graph=graph, stage=stage, data_range=1.0, teacher=teacher)


# --- one gradient, however the batch is taken ----------------------------------------------------


def gradient(net, stage, parallel=None):
    """Of 64 pictures, in double precision."""
    graph, state = states.begin(net, stage, optimiser_of(stage)[1])
    lr, hr = batch(64, side=4)
    slope = jax.jit(
        lambda state, lr, hr: states.slope(objective_of(graph, stage), state, None, lr, hr)
    )
    if parallel:
        devices = Devices.dividing(64, parallel)
        assert len(devices.mesh.devices) == 2
        state, (lr, hr) = devices.everywhere(state), devices.spread((lr, hr))
    value, _, slopes = slope(state, lr, hr)
    return [value, *jax.tree.leaves(slopes)]


def test_accumulated_and_spread_batches_have_one_gradient(net, stage):
    with jax.enable_x64(True):
        net = cast(net, np.float64)
        whole = gradient(net, stage)
        for other in (gradient(net, replace_in(stage, accumulate=4, batch=64)),
                      gradient(net, stage, "jit")):  # fmt: skip
            for ours, theirs in zip(other, whole, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


def replace_in(stage, *, batch, **changes):
    return replace(stage, data=replace(stage.data, batch=batch), **changes)


def test_branches_learn_the_same_through_the_layer_they_fuse_to(stage):
    with jax.enable_x64(True):
        net = cast(registry.plain("span").build(seed=0, channels=4), np.float64)
        branches, fused = (gradient(net, replace(stage, fused=said)) for said in (False, True))
    for ours, theirs in zip(fused, branches, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * np.abs(theirs).max())


def test_jit_and_pmap_move_the_weights_alike(net, stage):
    """Twenty steps on two devices: what pmap averages is what jit's sums give."""
    with jax.enable_x64(True):
        after = [
            twenty(cast(net, np.float64), replace_in(stage, batch=4), p) for p in ("jit", "pmap")
        ]
    for ours, theirs in zip(*after, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


def twenty(net, stage, parallel):
    _, rule = optimiser_of(stage)
    graph, state = states.begin(net, stage, rule)
    devices = Devices.dividing(4, parallel)
    step = devices.compiled(objective_of(graph, stage), rule)
    state = devices.everywhere(state)
    for _ in range(20):
        state, _ = step(state, None, *devices.spread(batch(4)))
    return jax.device_get(jax.tree.leaves(state.params))


# --- what moves ----------------------------------------------------------------------------------


def two_steps(net, stage, teacher=None, adapters=()):
    """The state before and after two steps, and the teacher's weights after them."""
    _, rule = optimiser_of(stage)
    graph, state = states.begin(net, stage, rule, adapters)
    step = jax.jit(states.step(objective_of(graph, stage, teacher), rule))
    taught, before = teacher and teacher.state, state
    for _ in range(2):
        state, _ = step(state, taught, *batch(2))
    return graph, before, state


def moved(before, after):
    """The paths of the weights of a network that changed by a bit or more."""
    pairs = zip(leaves(before), leaves(after), strict=True)
    return {path for (path, a), (_, b) in pairs if not np.array_equal(a[...], b[...])}


def test_frozen_weights_stay_and_all_others_move(net, stage):
    stage = replace(stage, freeze=("block_*", "conv_near.*"), ema=None)
    graph, before, after = two_steps(net, stage)
    names = moved(states.network(graph, before), states.network(graph, after))
    assert names == {"depthwise_conv.weight", "pointwise_conv.weight"}


def test_a_glob_that_freezes_nothing_is_told(net, stage):
    with pytest.raises(states.NothingToFreeze, match=r"'blok_\*' match no weight"):
        two_steps(net, replace(stage, freeze=("blok_*",)))
    with pytest.raises(states.NothingToFreeze, match="nothing is left to train"):
        two_steps(net, replace(stage, freeze=("*",)))


def test_adapters_move_and_the_kernels_under_them_do_not(net, stage):
    from esrjax.network.lora import adapt

    lora = LoRA(rank=2, alpha=4.0, where=("block_*.c1",))
    adapted = adapt(net, lora.where, rank=2, alpha=4.0, rngs=nnx.Rngs(0))
    graph, before, after = two_steps(adapted, replace(stage, lora=lora, ema=None))
    names = moved(states.network(graph, before), states.network(graph, after))
    kernels = {f"block_{i}.c1.lora_{ab}" for i in range(1, 6) for ab in "AB"}
    assert names == kernels


def test_the_average_follows_the_weights_by_its_decay(net, stage):
    graph, before, after = two_steps(net, replace(stage, ema=0.9))
    one = two_steps(net, replace(stage, ema=None))[2]  # the same steps without
    for ours, theirs in zip(*map(jax.tree.leaves, (after.params, one.params)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    names = moved(states.network(graph, before), states.network(graph, after))
    assert names == {path for path, _ in leaves(net)}


def test_a_teacher_stays_and_the_adapter_between_widths_moves(net, stage):
    wide = Held(method="spanv2", net=METHOD.build(seed=1, channels=6), form="train", sizes={})
    said = Said(method="spanv2", weights="given", taps={"block_2": "block_2"})
    stage = replace(stage, loss={"l1": 1.0, "teacher_features": 1.0}, teacher=said, ema=None)
    teacher = Teacher.of(wide, said)
    kept = jax.tree.map(np.asarray, teacher.state)
    ours = Held(method="spanv2", net=net, form="train", sizes={})
    adapters = adapters_of(ours, teacher, stage, seed=0)
    assert [kernel.shape for kernel in adapters] == [(4, 6)]
    _, before, after = two_steps(net, stage, teacher, adapters)
    for a, b in zip(*map(jax.tree.leaves, (kept, teacher.state)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(before.params["adapters"][0], after.params["adapters"][0])
    assert len(list(leaves(net))) == len(jax.tree.leaves(after.params["network"]))


def test_bf16_computes_roughly_and_keeps_float32_weights(net, stage):
    losses = []
    for precision in ("fp32", "bf16"):
        graph, state = states.begin(net, stage, optimiser_of(stage)[1])
        objective = objective_of(graph, replace(stage, precision=precision))
        value, _, slopes = states.slope(objective, state, None, *batch(2))
        assert {leaf.dtype for leaf in jax.tree.leaves(slopes)} == {np.dtype(np.float32)}
        losses.append(float(value))
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], abs=2e-3)


def test_a_weight_follows_its_knots(net, stage):
    """The Fourier term counts 0 at first, all of its weight at the last knot."""
    knots = replace(stage, loss={"l1": 1.0, "fft": ((0, 0.0), (4, 0.5))}, ema=None)
    graph, state = states.begin(net, stage, optimiser_of(stage)[1])
    values = {}
    for step in (0, 2, 4, 9):
        at = replace(state, step=jnp.asarray(step, jnp.int32))
        values[step] = float(states.slope(objective_of(graph, knots), at, None, *batch(2))[0])
    assert values[2] - values[0] == pytest.approx((values[4] - values[0]) / 2, rel=1e-4)
    assert values[9] == values[4] > values[0]


def test_clipping_bounds_what_the_optimiser_sees(said):
    said["stage"][0] |= {"clip": 1e-3}
    _, rule = optimiser_of(recipes.parse(said).stage[0])
    params = {"w": jnp.ones(3)}
    large, small = ({"w": jnp.full(3, size)} for size in (1e3, 1e-3 / np.sqrt(3)))
    ours, _ = rule.update(large, rule.init(params), params)
    theirs, _ = rule.update(small, rule.init(params), params)
    np.testing.assert_allclose(ours["w"], theirs["w"], rtol=1e-5)
