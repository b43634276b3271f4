"""SwinIR: shifted windows, stochastic depth, parameter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.blocks import scan_layers
from esrjax_plugins.blocks.stochastic_depth import StochasticDepth, drop_path_rates
from esrjax_plugins.blocks.window_attention import WindowSelfAttention
from esrjax_plugins.swinir import METHOD, SwinTransformerBlock
from flax import nnx

from esrjax.loading import abstract_network
from esrjax.nn.cost import cost
from esrjax.nn.state_dict import perturb_weights
from esrjax.testing import FAST_COMPILE

SMALL = dict(channels=8, num_groups=2, depth=2, num_heads=2, window_size=4)


def random_array(*shape):
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


# --- windows -----------------------------------------------------------------------------------


def influencing_pixels(attention, row, column, size=12):
    """Which pixels of a feature map influence the output at one pixel."""
    x = random_array(1, size, size, 8)
    grad = jax.grad(lambda x: attention(x)[0, row, column].sum())(x)
    return np.abs(grad[0]).max(-1) > 1e-12


@pytest.mark.parametrize(
    "row, column, end_row, end_column", [(0, 0, 2, 2), (3, 7, 6, 10), (11, 5, 12, 6)]
)
def test_shifted_windows_do_not_wrap_around_the_border(row, column, end_row, end_column):
    attention = perturb_weights(WindowSelfAttention(8, 2, 4, 2, rngs=nnx.Rngs(0)), 0.5)
    expected = np.zeros((12, 12), bool)
    lengths = [2 if end in (2, 12) else 4 for end in (end_row, end_column)]
    expected[end_row - lengths[0] : end_row, end_column - lengths[1] : end_column] = True
    np.testing.assert_array_equal(influencing_pixels(attention, row, column), expected)


def test_every_other_block_is_shifted():
    net = METHOD.build(**SMALL)
    attentions = [
        module for _, module in nnx.iter_modules(net) if isinstance(module, WindowSelfAttention)
    ]
    assert [module.shift_size for module in attentions] == [0, 2, 0, 2]


def test_input_is_reflect_padded_and_output_cropped():
    net = METHOD.build(**SMALL)
    net.eval()
    run, x = jax.jit(lambda x: net(x), compiler_options=FAST_COMPILE), random_array(1, 7, 8, 3)
    padded = jnp.concatenate([x, x[:, -2:-1]], 1)
    np.testing.assert_allclose(run(x), run(padded)[:, :28], atol=1e-6)


# --- stochastic depth --------------------------------------------------------------------------


def test_stochastic_depth_drops_whole_images_and_rescales():
    drop_path, x = StochasticDepth(0.25), 1 + random_array(4000, 2, 3)
    y = np.asarray(drop_path(x))
    is_kept = y.any((1, 2))
    np.testing.assert_allclose(y[is_kept], x[is_kept] / 0.75, rtol=1e-6)
    np.testing.assert_allclose(is_kept.mean(), 0.75, atol=0.03)
    np.testing.assert_array_equal(drop_path(x[5:9]), y[5:9])
    drop_path.eval()
    np.testing.assert_array_equal(drop_path(x), x)


def test_drop_path_rates_rise_over_all_blocks():
    assert drop_path_rates(0.1, 1) == [0]
    net = METHOD.build(**SMALL, drop_path_rate=0.3)
    rates = [
        module.drop_path.drop_prob
        for _, module in nnx.iter_modules(net)
        if isinstance(module, SwinTransformerBlock)
    ]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


# --- the network -------------------------------------------------------------------------------


def test_initialization_is_the_official_one():
    block = METHOD.build(**SMALL).layers[0].residual_group.blocks[0]
    for weight in (block.mlp.fc1.weight, block.attn.qkv.weight):
        np.testing.assert_allclose(weight[...].std(), 0.02, rtol=0.3)
    assert not block.attn.qkv.bias[...].any() and not block.mlp.fc2.bias[...].any()


def test_remat_has_the_same_gradients(monkeypatch):
    """Also in training, where stochastic depth is random."""
    monkeypatch.setattr(scan_layers, "xla_keeps_remat", lambda: True)

    def grads(remat):
        net = METHOD.build(**{**SMALL, "depth": 1}, drop_path_rate=0.5, remat=remat)
        graph, state = nnx.split(perturb_weights(net))
        loss = lambda state: nnx.merge(graph, state)(random_array(2, 4, 4, 3)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss), compiler_options=FAST_COMPILE)(state)

    for saved, rematerialized in zip(
        *(jax.tree.leaves(grads(remat)) for remat in (False, True)), strict=True
    ):
        np.testing.assert_allclose(saved, rematerialized, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("hparams", "params", "giga"),
    [
        ({}, 11_900_199, 861),
        (dict(channels=60, num_groups=4, pixelshuffledirect=True), 929_628, 70.8),
    ],
)
def test_costs_of_the_published_networks(hparams, params, giga):
    report = cost(abstract_network(METHOD, "deploy", hparams), image_size=64)
    assert report.params == params
    np.testing.assert_allclose(16 * report.macs / 1e9, giga, rtol=6e-4)
