"""bf16 in the large networks: matmuls are bf16, statistics and weights are float32."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax import registry
from esrjax.nn import functional, ops
from esrjax.nn.functional import SUM_OP
from esrjax.nn.state_dict import cast, perturb_weights
from esrjax.testing import FAST_COMPILE
from esrjax.training import recipe_loader, train_state
from esrjax.training.stage_trainer import make_stage_optimizer
from esrjax.training.train_state import Objective

HALF = jnp.bfloat16
SWIN = dict(
    channels=12, num_groups=1, depth=2, num_heads=2, window_size=4
)  # the second block is shifted
HPARAMS = {
    "hat": dict(**SWIN, squeeze_factor=6),
    "mambairv2": dict(**SWIN, d_state=2, num_tokens=3, inner_rank=2),
    "swinir": SWIN,
}
MATMULS = {"conv_general_dilated", "dot_general"}
FP32_OPS = {"op_layer_norm", "op_window_attention", "scan"}  # which compute exponentials and roots


def random_array(*shape, dtype=HALF):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def make_network(name, **sizes):
    return perturb_weights(registry.get_method(name).build(**(HPARAMS[name] | sizes)))


# --- dtype of each operation ---------------------------------------------------------------------


def operations(jaxpr, path=()):
    """Yield primitive, enclosing ops and floating dtypes of every equation of a jaxpr."""
    for eqn in jaxpr.eqns:
        dtypes = (getattr(var.aval, "dtype", None) for var in (*eqn.invars, *eqn.outvars))
        name = eqn.primitive.name
        yield name, path, {d.name for d in dtypes if d and jnp.issubdtype(d, jnp.floating)}
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                inner_path = (*path, eqn.params.get("name", name))
                yield from operations(getattr(value, "jaxpr", value), inner_path)


def is_jaxpr(value):
    return hasattr(value, "eqns")


@pytest.mark.parametrize("name", HPARAMS)
def test_matmuls_are_bf16_and_exponentials_float32(name):
    """Except inside a selective scan, whose state accumulates over all tokens."""
    net = cast(make_network(name), HALF)
    net.train()
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), HALF)
    ops_ = list(operations(jax.make_jaxpr(lambda x: net(x))(x).jaxpr))
    excluded = {"scan", SUM_OP}
    matmuls = [dtypes for op, path, dtypes in ops_ if op in MATMULS and not excluded & set(path)]
    assert len(matmuls) > 15 and all(dtypes == {"bfloat16"} for dtypes in matmuls)
    exact = [d for op, path, d in ops_ if op in {"exp", "rsqrt"} and FP32_OPS & set(path)]
    assert len(exact) > 4 and all(dtypes == {"float32"} for dtypes in exact)


@pytest.mark.parametrize(
    "op, shapes",
    [
        (functional.layer_norm, [(2, 5, 12), (12,), (12,)]),
        (functional.group_norm, [(2, 5, 4, 12), (12,), (12,)]),
        (functional.softmax, [(3, 40)]),
        (ops.selective_scan, [(1, 50, 3), (1, 50, 3), (3, 4), (1, 50, 4), (1, 50, 4), (3,)]),
    ],
    ids=["layer_norm", "group_norm", "softmax", "selective_scan"],
)
def test_bf16_statistics_equal_float32_rounded_once(op, shapes):
    args = [random_array(*shape) for shape in shapes]
    if op is ops.selective_scan:
        args[1:3] = abs(args[1]), -abs(args[2])
    result, exact = op(*args), op(*(arg.astype(jnp.float32) for arg in args))
    assert result.dtype == HALF
    np.testing.assert_array_equal(result, exact.astype(HALF))


# --- error of bf16, and training ----------------------------------------------------------------


@pytest.mark.parametrize(
    "name, rtol",
    [("hat", 0.02), pytest.param("mambairv2", 0.06, marks=pytest.mark.slow), ("swinir", 0.02)],
)
def test_bf16_images_are_close(name, rtol):
    """Relative to the standard deviation; a token of MambaIRv2 may be routed differently."""
    net, x = make_network(name), jnp.abs(random_array(1, 12, 8, 3, dtype=jnp.float32)) / 3
    net.eval()
    outputs = [
        jax.jit(cast(net, dtype), compiler_options=FAST_COMPILE)(x.astype(dtype)).astype(
            jnp.float32
        )
        for dtype in (jnp.float32, HALF)
    ]
    error = jnp.std(outputs[1] - outputs[0]) / jnp.std(outputs[0])
    assert 1e-4 < error < rtol


@pytest.mark.parametrize("name", ["hat", pytest.param("mambairv2", marks=pytest.mark.slow)])
def test_two_steps_with_all_heads(name, recipe_dict):
    method = registry.get_method(name)
    heads = {f"head_{scale}x": 0.5 for scale in method.default_hparams()["extra_scales"]}
    stage = replace(
        recipe_loader.parse(recipe_dict).stage[0], loss={"l1": 0.5}, heads=heads, precision="bf16"
    )
    _, optimizer = make_stage_optimizer(stage)
    graphdef, state = train_state.init_state(make_network(name, depth=1), stage, optimizer)
    objective = Objective(graphdef=graphdef, stage=stage, data_range=1.0)
    step = jax.jit(train_state.make_train_step(objective, optimizer), compiler_options=FAST_COMPILE)
    lr, losses = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8), []
    for _ in range(2):
        state, loss = step(state, None, jnp.asarray(lr), jnp.asarray(lr.repeat(4, 1).repeat(4, 2)))
        losses.append(float(loss))
    assert step._cache_size() == 1, "recompiled for the second step"
    assert np.isfinite(losses).all() and state.first_nonfinite_step == -1 and losses[0] != losses[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
