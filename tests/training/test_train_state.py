"""One training step: which parameters change, and equality of all ways to compute it."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.errors import RecipeError
from esrjax.nn.state_dict import cast, named_parameters
from esrjax.training import recipe_loader, train_state
from esrjax.training.distributed import DataParallel
from esrjax.training.init_from import LoadedModel, Teacher
from esrjax.training.optim import param_labels
from esrjax.training.recipe import LoRA, Optimizer, TeacherConfig
from esrjax.training.stage_trainer import make_adapters, make_stage_optimizer
from esrjax.training.train_state import Objective

METHOD = registry.get_method("spanv2")


@pytest.fixture
def stage(recipe_dict):
    return recipe_loader.parse(recipe_dict).stage[0]


@pytest.fixture
def net():
    return METHOD.build(seed=0, channels=4)


@pytest.fixture
def crumb(crumbs):
    """A network of one convolution, where any network would do: it compiles fastest."""
    return registry.get_method("crumb").build(seed=0)


def batch(count, side=6):
    rng = np.random.default_rng(0)
    lr = rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return jnp.asarray(lr), jnp.asarray(lr.repeat(4, 1).repeat(4, 2))


def make_objective(graphdef, stage, teacher=None):
    return Objective(graphdef=graphdef, stage=stage, data_range=1.0, teacher=teacher)


# --- equal gradients of sharded, accumulated and fused computation -------------------------------


def loss_and_grads(net, stage, parallel=None):
    """Return loss and gradients of 64 images, in double precision."""
    graphdef, state = train_state.init_state(net, stage, make_stage_optimizer(stage)[1])
    lr, hr = batch(64, side=4)
    fn = jax.jit(
        lambda state, lr, hr: train_state.loss_and_grads(
            make_objective(graphdef, stage), state, None, lr, hr
        )
    )
    if parallel:
        data_parallel = DataParallel.for_batch(64, parallel)
        assert len(data_parallel.mesh.devices) == 2
        state, (lr, hr) = data_parallel.replicate(state), data_parallel.shard((lr, hr))
    loss, _, grads = fn(state, lr, hr)
    return [loss, *jax.tree.leaves(grads)]


def test_accumulated_and_sharded_batches_have_the_same_gradient(crumb, stage):
    with jax.enable_x64(True):
        net = cast(crumb, np.float64)
        reference = loss_and_grads(net, stage)
        accumulated = loss_and_grads(net, replace_fields(stage, grad_accum_steps=4, batch_size=64))
        for results in (accumulated, loss_and_grads(net, stage, "jit")):
            for result, expected in zip(results, reference, strict=True):
                np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


def replace_fields(stage, *, batch_size, **fields):
    return replace(stage, data=replace(stage.data, batch_size=batch_size), **fields)


def test_train_fused_has_the_gradient_of_the_branches(stage):
    with jax.enable_x64(True):
        net = cast(registry.get_method("span").build(seed=0, channels=4), np.float64)
        branches, fused = (
            loss_and_grads(net, replace(stage, train_fused=x)) for x in (False, True)
        )
    for result, expected in zip(fused, branches, strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_jit_and_pmap_train_the_same_weights(crumb, stage):
    """Twenty steps on two devices: pmap averages gradients, jit computes the global mean."""
    with jax.enable_x64(True):
        weights = [
            twenty_steps(cast(crumb, np.float64), replace_fields(stage, batch_size=4), parallel)
            for parallel in ("jit", "pmap")
        ]
    for result, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-10)


def twenty_steps(net, stage, parallel):
    _, optimizer = make_stage_optimizer(stage)
    graphdef, state = train_state.init_state(net, stage, optimizer)
    data_parallel = DataParallel.for_batch(4, parallel)
    step = data_parallel.compile_step(make_objective(graphdef, stage), optimizer)
    state = data_parallel.replicate(state)
    for _ in range(20):
        state, _ = step(state, None, *data_parallel.shard(batch(4)))
    return jax.device_get(jax.tree.leaves(state.params))


# --- which parameters change ---------------------------------------------------------------------


def two_steps(net, stage, teacher=None, adapters=()):
    """Return the graphdef definition, and the state before and after two steps."""
    _, optimizer = make_stage_optimizer(stage)
    graphdef, state = train_state.init_state(net, stage, optimizer, adapters)
    step = jax.jit(train_state.make_train_step(make_objective(graphdef, stage, teacher), optimizer))
    teacher_state, before = teacher and teacher.state, state
    for _ in range(2):
        state, _ = step(state, teacher_state, *batch(2))
    return graphdef, before, state


def changed_params(before, after):
    """Return the paths of the parameters that differ between two networks."""
    pairs = zip(named_parameters(before), named_parameters(after), strict=True)
    return {path for (path, a), (_, b) in pairs if not np.array_equal(a[...], b[...])}


def test_frozen_parameters_do_not_change_and_all_others_do(net, stage):
    stage = replace(stage, freeze=("block_*", "conv_near.*"), ema=None, ema_warmup=False)
    graphdef, before, after = two_steps(net, stage)
    names = changed_params(
        train_state.merge_network(graphdef, before), train_state.merge_network(graphdef, after)
    )
    assert names == {"depthwise_conv.weight", "pointwise_conv.weight"}


def test_freezing_nothing_or_everything_is_reported(net, stage):
    with pytest.raises(RecipeError, match=r"'blok_\*'"):
        two_steps(net, replace(stage, freeze=("blok_*",)))
    with pytest.raises(RecipeError, match="left to train"):
        two_steps(net, replace(stage, freeze=("*",)))


def test_lora_trains_only_the_adapters(net, stage):
    from esrjax.nn.lora import add_lora

    lora = LoRA(rank=2, alpha=4.0, target_modules=("block_*.c1",))
    adapted = add_lora(net, lora.target_modules, rank=2, alpha=4.0, rngs=nnx.Rngs(0))
    graphdef, before, after = two_steps(
        adapted, replace(stage, lora=lora, ema=None, ema_warmup=False)
    )
    names = changed_params(
        train_state.merge_network(graphdef, before), train_state.merge_network(graphdef, after)
    )
    factors = {f"block_{i}.c1.lora_{ab}" for i in range(1, 6) for ab in "AB"}
    assert names == factors


def test_lora_trains_its_factors_and_the_parameters_that_it_lists(net, stage):
    """As DSCF's recipe: kernels are frozen, the factors are Muon's and the biases AdamW's."""
    from esrjax.nn.lora import add_lora

    lora = LoRA(rank=2, alpha=4.0, target_modules=("block_*.c1",), train=("*.bias",))
    adapted = add_lora(net, lora.target_modules, rank=2, alpha=4.0, rngs=nnx.Rngs(0))
    muadamw = Optimizer(name="muadamw", learning_rate=1e-3, muon_learning_rate=1e-2)
    stage = replace(stage, lora=lora, optimizer=muadamw, ema=None, ema_warmup=False)
    graphdef, before, after = two_steps(adapted, stage)
    names = changed_params(
        train_state.merge_network(graphdef, before), train_state.merge_network(graphdef, after)
    )
    biases = {path for path, _ in named_parameters(net) if path.endswith(".bias")}
    factors = {f"block_{i}.c1.lora_{ab}" for i in range(1, 6) for ab in "AB"}
    assert biases and names == factors | biases
    labels = jax.tree.leaves(param_labels(before.params))
    assert (labels.count("muon"), labels.count("adamw")) == (len(factors), len(biases))


def test_glob_of_lora_that_matches_no_parameter_is_reported(net, stage):
    lora = LoRA(rank=2, alpha=4.0, train=("*.bais",))
    with pytest.raises(RecipeError, match=r"lora\.train .*'\*\.bais' match no parameter"):
        two_steps(net, replace(stage, lora=lora))


def test_ema_changes_and_does_not_affect_training(net, stage):
    graphdef, before, after = two_steps(net, replace(stage, ema=0.9))
    without_ema = two_steps(net, replace(stage, ema=None, ema_warmup=False))[2]
    leaves = map(jax.tree.leaves, (after.params, without_ema.params))
    for result, expected in zip(*leaves, strict=True):
        np.testing.assert_array_equal(result, expected)
    names = changed_params(
        train_state.merge_network(graphdef, before), train_state.merge_network(graphdef, after)
    )
    assert names == {path for path, _ in named_parameters(net)}


def test_ema_counts_updates_and_not_micro_batches(net, stage):
    """The second average is 2/11 of the first and 9/11 of the second weights, in every case."""
    stage = replace(stage, ema=0.9999, ema_warmup=True, grad_accum_steps=2)
    _, optimizer = make_stage_optimizer(stage)
    graphdef, state = train_state.init_state(net, stage, optimizer)
    step = jax.jit(train_state.make_train_step(make_objective(graphdef, stage), optimizer))
    states = [state]
    for _ in range(2):
        states.append(step(states[-1], None, *batch(2))[0])
    start, first, second = (jax.tree.leaves(state.params["network"]) for state in states)
    for i, average in enumerate(jax.tree.leaves(states[-1].ema)):
        expected = 0.1 * np.float64(start[i]) + 0.9 * np.float64(first[i])
        expected = 2 / 11 * expected + 9 / 11 * np.float64(second[i])
        np.testing.assert_allclose(average, expected, rtol=0, atol=1e-6)


NUM_DRAWS = 10_000  # of the full campaign


def drawn_ema(rng, stage):
    """Return a stage with a drawn EMA, and drawn weights: the initial ones and one per step."""
    decay = float(rng.choice([0.0, rng.random(), 1 - 10.0 ** -rng.uniform(1, 6)]))
    steps = int(rng.integers(1, 60))
    stage = replace(stage, steps=steps, ema=decay, ema_warmup=bool(rng.integers(2)))
    return stage, rng.normal(size=(steps + 1, 2)) * 10.0 ** rng.integers(-3, 3)


def ema_coefficients(stage):
    """Return the factor of the weights of every step in the average, the initial ones first."""
    t = np.arange(stage.steps, dtype=np.float64)
    decays = np.minimum(stage.ema, (1 + t) / (10 + t)) if stage.ema_warmup else 0 * t + stage.ema
    return np.array(
        [np.prod(decays), *((1 - d) * np.prod(decays[i + 1 :]) for i, d in enumerate(decays))]
    )


def check_drawn_emas(stage, num_draws, seed):
    @jax.jit
    def averages(weights, decay, is_warmup):
        def update(carry, x):
            step, average = carry
            state = SimpleNamespace(ema=average, step=step)
            plain, warm = (
                train_state._update_ema(state, x, SimpleNamespace(ema=decay, ema_warmup=warmup))
                for warmup in (False, True)
            )
            average = jnp.where(is_warmup, warm, plain)
            return (step + 1, average), average

        init = (jnp.zeros((), jnp.int32), weights[0])
        return jax.lax.scan(update, init, weights[1:])[1]

    rng = np.random.default_rng(seed)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        with jax.enable_x64(dtype == np.float64):
            for _ in range(num_draws // 2):
                drawn, weights = drawn_ema(rng, stage)
                coefficients = ema_coefficients(drawn)
                assert coefficients.sum() == pytest.approx(1)
                assert drawn.ema_initial_share == pytest.approx(
                    coefficients[0], rel=1e-9, abs=1e-300
                )
                padded = np.concatenate([weights, np.zeros((60 - len(weights), 2))]).astype(dtype)
                result = averages(padded, drawn.ema, drawn.ema_warmup)[drawn.steps - 1]
                error = np.abs(np.float64(result) - coefficients @ weights).max()
                assert error <= tolerance * np.abs(weights).max(), drawn


def test_drawn_emas_equal_a_weighted_sum(stage):
    check_drawn_emas(stage, 200, seed=0)


@pytest.mark.slow
def test_drawn_emas_equal_a_weighted_sum_in_the_full_campaign(stage):
    check_drawn_emas(stage, NUM_DRAWS, seed=1)


def test_ema_of_constant_weights_is_these_weights(stage):
    """In float32, 0.9999 and 1 - 0.9999 do not sum to 1: their sum shrank the weights by 1.7e-4."""
    stage, weight = replace(stage, ema=0.9999), jnp.float32(0.1)

    def update(step, average):
        return train_state._update_ema(SimpleNamespace(ema=average, step=step), weight, stage)

    assert jax.lax.fori_loop(0, 100_000, update, weight) == weight


def test_teacher_does_not_change_and_its_adapter_is_trained(net, stage):
    fields = {"method": "spanv2", "form": "train", "hparams": {}}
    teacher_model = LoadedModel(net=METHOD.build(seed=1, channels=6), **fields)
    cfg = TeacherConfig(method="spanv2", checkpoint="unused", taps={"block_2": "block_2"})
    stage = replace(
        stage, loss={"l1": 1.0, "teacher_features": 1.0}, teacher=cfg, ema=None, ema_warmup=False
    )
    teacher = Teacher.create(teacher_model, cfg)
    teacher_state = jax.tree.map(np.asarray, teacher.state)
    adapters = make_adapters(LoadedModel(net=net, **fields), teacher, stage, seed=0)
    assert [kernel.shape for kernel in adapters] == [(4, 6)]
    _, before, after = two_steps(net, stage, teacher, adapters)
    for a, b in zip(*map(jax.tree.leaves, (teacher_state, teacher.state)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(before.params["adapters"][0], after.params["adapters"][0])
    assert len(list(named_parameters(net))) == len(jax.tree.leaves(after.params["network"]))


def test_bf16_loss_is_close_and_gradients_are_float32(net, stage):
    losses = []
    for precision in ("fp32", "bf16"):
        graphdef, state = train_state.init_state(net, stage, make_stage_optimizer(stage)[1])
        objective = make_objective(graphdef, replace(stage, precision=precision))
        loss, _, grads = train_state.loss_and_grads(objective, state, None, *batch(2))
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {np.dtype(np.float32)}
        losses.append(float(loss))
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], abs=2e-3)


def test_loss_weight_is_piecewise_linear(net, stage):
    """The FFT term has weight 0 at first, and its full weight from the last breakpoint on."""
    ramp = replace(stage, loss={"l1": 1.0, "fft": ((0, 0.0), (4, 0.5))}, ema=None, ema_warmup=False)
    graphdef, state = train_state.init_state(net, stage, make_stage_optimizer(stage)[1])
    values = {}
    for step in (0, 2, 4, 9):
        at = replace(state, step=jnp.asarray(step, jnp.int32))
        objective = make_objective(graphdef, ramp)
        values[step] = float(train_state.loss_and_grads(objective, at, None, *batch(2))[0])
    assert values[2] - values[0] == pytest.approx((values[4] - values[0]) / 2, rel=1e-4)
    assert values[9] == values[4] > values[0]


def test_gradient_clipping_bounds_the_gradient_of_the_optimizer(recipe_dict):
    recipe_dict["stage"][0] |= {"grad_clip_norm": 1e-3}
    _, optimizer = make_stage_optimizer(recipe_loader.parse(recipe_dict).stage[0])
    params = {"w": jnp.ones(3)}
    large, clipped = ({"w": jnp.full(3, value)} for value in (1e3, 1e-3 / np.sqrt(3)))
    update, _ = optimizer.update(large, optimizer.init(params), params)
    expected, _ = optimizer.update(clipped, optimizer.init(params), params)
    np.testing.assert_allclose(update["w"], expected["w"], rtol=1e-5)
