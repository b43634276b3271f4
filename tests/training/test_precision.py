"""Half precision in the large networks: products are rough, statistics and weights are not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esrjax import registry
from esrjax.network import ops, words
from esrjax.network.reduction import SUM
from esrjax.network.weights import cast, scattered
from esrjax.testing import QUICK
from esrjax.training import recipe as recipes
from esrjax.training import state as states
from esrjax.training.objective import Objective
from esrjax.training.work import optimiser_of

HALF = jnp.bfloat16
SWIN = dict(channels=12, groups=1, blocks=2, heads=2, window=4)  # the second block is shifted
SIZES = {
    "hat": dict(**SWIN, squeeze=6),
    "mambairv2": dict(**SWIN, states=2, kinds=3, rank=2),
    "swinir": SWIN,
}
PRODUCTS = {"conv_general_dilated", "dot_general"}
FINE = {"word_layer_norm", "word_window_attention", "scan"}  # where exponentials and roots are


def drawn(*shape, dtype=HALF):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def network(name, **sizes):
    return scattered(registry.plain(name).build(**(SIZES[name] | sizes)))


# --- what is computed in which type ------------------------------------------------------------


def operations(program, path=()):
    """Name, words around and types of the floats of everything that a program does."""
    for each in program.eqns:
        types = (getattr(value.aval, "dtype", None) for value in (*each.invars, *each.outvars))
        name = each.primitive.name
        yield name, path, {t.name for t in types if t and jnp.issubdtype(t, jnp.floating)}
        for inner in jax.tree.leaves(list(each.params.values()), is_leaf=is_program):
            if is_program(inner):
                within = (*path, each.params.get("name", name))
                yield from operations(getattr(inner, "jaxpr", inner), within)


def is_program(value):
    return hasattr(value, "eqns")


@pytest.mark.parametrize("name", SIZES)
def test_products_are_of_halves_and_exponentials_of_floats(name):
    """But those of the states of a scan, which are handed on from token to token."""
    net = cast(network(name), HALF)
    net.train()
    x = jax.ShapeDtypeStruct((1, 8, 8, 3), HALF)
    found = list(operations(jax.make_jaxpr(lambda x: net(x))(x).jaxpr))
    others = {"scan", SUM}
    products = [types for op, path, types in found if op in PRODUCTS and not others & set(path)]
    assert len(products) > 15 and all(types == {"bfloat16"} for types in products)
    fine = [types for op, path, types in found if op in {"exp", "rsqrt"} and FINE & set(path)]
    assert len(fine) > 4 and all(types == {"float32"} for types in fine)


@pytest.mark.parametrize(
    "word, shapes",
    [
        (words.layer_norm, [(2, 5, 12), (12,), (12,)]),
        (words.group_norm, [(2, 5, 4, 12), (12,), (12,)]),
        (words.softmax, [(3, 40)]),
        (ops.selective_scan, [(1, 50, 3), (1, 50, 3), (3, 4), (1, 50, 4), (1, 50, 4), (3,)]),
    ],
    ids=["layer_norm", "group_norm", "softmax", "selective_scan"],
)
def test_statistics_of_halves_are_those_of_floats_rounded_once(word, shapes):
    given = [drawn(*shape) for shape in shapes]
    if word is ops.selective_scan:
        given[1:3] = abs(given[1]), -abs(given[2])
    found, exact = word(*given), word(*(each.astype(jnp.float32) for each in given))
    assert found.dtype == HALF
    np.testing.assert_array_equal(found, exact.astype(HALF))


# --- how near it is, and that it trains --------------------------------------------------------


@pytest.mark.parametrize("name, share", [("hat", 0.02), ("mambairv2", 0.06), ("swinir", 0.02)])
def test_pictures_in_halves_are_near(name, share):
    """By the deviation of the picture; a token of MambaIRv2 may change its kind."""
    net, x = network(name), jnp.abs(drawn(1, 12, 8, 3, dtype=jnp.float32)) / 3
    net.eval()
    made = [
        jax.jit(cast(net, dtype), compiler_options=QUICK)(x.astype(dtype)).astype(jnp.float32)
        for dtype in (jnp.float32, HALF)
    ]
    away = jnp.std(made[1] - made[0]) / jnp.std(made[0])
    assert 1e-4 < away < share


@pytest.mark.parametrize("name", ["hat", pytest.param("mambairv2", marks=pytest.mark.slow)])
def test_two_steps_with_all_heads(name, said):
    method = registry.plain(name)
    heads = {f"head_{times}x": 0.5 for times in method.sizes()["further"]}
    stage = replace(recipes.parse(said).stage[0], loss={"l1": 0.5}, heads=heads, precision="bf16")
    _, rule = optimiser_of(stage)
    graph, state = states.begin(network(name, blocks=1), stage, rule)
    objective = Objective(graph=graph, stage=stage, data_range=1.0)
    step = jax.jit(states.step(objective, rule), compiler_options=QUICK)
    lr, losses = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8), []
    for _ in range(2):
        state, loss = step(state, None, jnp.asarray(lr), jnp.asarray(lr.repeat(4, 1).repeat(4, 2)))
        losses.append(float(loss))
    assert step._cache_size() == 1, "one program for all steps"
    assert np.isfinite(losses).all() and state.bad == -1 and losses[0] != losses[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
