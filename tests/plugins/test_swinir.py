"""SwinIR: windows that do not leak, depth that is drawn, sizes that were published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.parts.chance import StochasticDepth, rising
from esrjax_plugins.parts.window_attention import SelfAttention
from esrjax_plugins.swinir import METHOD, Block
from flax import nnx

from esrjax.network.cost import cost
from esrjax.network.weights import scattered
from esrjax.recognition import template
from esrjax.testing import QUICK

SMALL = dict(channels=8, groups=2, blocks=2, heads=2, window=4)


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


# --- windows -----------------------------------------------------------------------------------


def seen_by(attention, row, column, side=12):
    """Which pixels of a picture the result at one pixel depends on."""
    x = drawn(1, side, side, 8)
    slope = jax.grad(lambda x: attention(x)[0, row, column].sum())(x)
    return np.abs(slope[0]).max(-1) > 1e-12


@pytest.mark.parametrize(
    "row, column, rows, columns", [(0, 0, 2, 2), (3, 7, 6, 10), (11, 5, 12, 6)]
)
def test_shifted_windows_end_at_the_border(row, column, rows, columns):
    attention = scattered(SelfAttention(8, 2, 4, 2, rngs=nnx.Rngs(0)), 0.5)
    wanted = np.zeros((12, 12), bool)
    lengths = [2 if end in (2, 12) else 4 for end in (rows, columns)]
    wanted[rows - lengths[0] : rows, columns - lengths[1] : columns] = True
    np.testing.assert_array_equal(seen_by(attention, row, column), wanted)


def test_every_other_block_is_shifted():
    net = METHOD.build(**SMALL)
    parts = [part for _, part in nnx.iter_modules(net) if isinstance(part, SelfAttention)]
    assert [part.shift for part in parts] == [0, 2, 0, 2]


def test_it_is_mirrored_without_the_edge_and_cropped():
    net = METHOD.build(**SMALL)
    net.eval()
    run, x = jax.jit(lambda x: net(x), compiler_options=QUICK), drawn(1, 7, 8, 3)
    mirrored = jnp.concatenate([x, x[:, -2:-1]], 1)
    np.testing.assert_allclose(run(x), run(mirrored)[:, :28], atol=1e-6)


# --- stochastic depth --------------------------------------------------------------------------


def test_depth_is_all_or_nothing_of_a_picture_and_keeps_the_mean():
    depth, x = StochasticDepth(0.25), 1 + drawn(4000, 2, 3)
    y = np.asarray(depth(x))
    kept = y.any((1, 2))
    np.testing.assert_allclose(y[kept], x[kept] / 0.75, rtol=1e-6)
    np.testing.assert_allclose(kept.mean(), 0.75, atol=0.03)
    np.testing.assert_array_equal(depth(x[5:9]), y[5:9])
    depth.eval()
    np.testing.assert_array_equal(depth(x), x)


def test_rates_rise_over_all_blocks():
    assert rising(0.1, 1) == [0]
    net = METHOD.build(**SMALL, drop=0.3)
    rates = [part.drop_path.rate for _, part in nnx.iter_modules(net) if isinstance(part, Block)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


# --- the network -------------------------------------------------------------------------------


def test_it_starts_as_the_authors_start_it():
    block = METHOD.build(**SMALL).layers[0].residual_group.blocks[0]
    for weight in (block.mlp.fc1.weight, block.attn.qkv.weight):
        np.testing.assert_allclose(weight[...].std(), 0.02, rtol=0.3)
    assert not block.attn.qkv.bias[...].any() and not block.mlp.fc2.bias[...].any()


def test_what_is_made_again_is_the_same():
    """Gradients with `remat`, of training, where depth is drawn."""

    def slopes(remat):
        net = METHOD.build(**{**SMALL, "blocks": 1}, drop=0.5, remat=remat)
        graph, state = nnx.split(scattered(net))
        loss = lambda state: nnx.merge(graph, state)(drawn(2, 4, 4, 3)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss), compiler_options=QUICK)(state)

    for ours, theirs in zip(*(jax.tree.leaves(slopes(remat)) for remat in (0, 1)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("sizes", "params", "giga"),
    [({}, 11_900_199, 861), (dict(channels=60, groups=4, direct=True), 929_628, 70.8)],
)
def test_the_published_sizes(sizes, params, giga):
    counted = cost(template(METHOD, "deploy", sizes), side=64)
    assert counted.params == params
    np.testing.assert_allclose(16 * counted.macs / 1e9, giga, rtol=6e-4)
