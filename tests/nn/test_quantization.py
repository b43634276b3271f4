"""Fake quantization: grids, straight-through gradients, layers, and networks that carry them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.errors import RecipeError
from esrjax.nn import ops
from esrjax.nn.cost import cost
from esrjax.nn.layers import Conv2d
from esrjax.nn.quantization import (
    QuantConv2d,
    add_quantization,
    fake_quantize,
    fake_quantize_weight,
    input_grid,
    quantize_as,
    quantized_convs,
    remove_quantization,
    weight_scale,
)
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, to_state_dict

FIRST_AND_LAST = ["conv_near", "block_1.c1", "depthwise_conv", "pointwise_conv"]


def random_array(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def calibrated(net, lr):
    """Return `net` in evaluation mode after one batch in training mode."""
    net.train()
    net(lr)
    net.eval()
    return net


@pytest.fixture
def spanv2():
    return deploy(registry.get_entry("spanv2").build(channels=4))


@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (0.0, 2.0), (-2.0, 0.0), (0.5, 2.0)])
def test_inputs_are_rounded_to_256_values_of_which_0_is_one(low, high):
    input_range = jnp.asarray([low, high])
    x = jnp.linspace(low - 1, high + 1, 4001)
    y = np.asarray(fake_quantize(x, input_range))
    scale, zero_point = map(float, input_grid(input_range))
    assert len(np.unique(y)) == 256 and 0 in y
    assert zero_point == round(zero_point) and 0 <= zero_point <= 255
    is_inside = (np.asarray(x) >= y.min()) & (np.asarray(x) <= y.max())
    assert np.abs(y - x)[is_inside].max() <= scale / 2 + 1e-6
    assert (y[x < y.min()] == y.min()).all() and (y[x > y.max()] == y.max()).all()


def test_gradient_passes_through_the_rounding_and_stops_where_values_are_clipped():
    x, input_range = jnp.asarray([-2.0, -0.99, 0.003, 1.99, 3.0]), jnp.asarray([-1.0, 2.0])
    gradient = jax.grad(lambda x: fake_quantize(x, input_range).sum())(x)
    np.testing.assert_array_equal(gradient, [0, 1, 1, 1, 0])
    w = random_array(3, 3, 2, 4)
    gradient = jax.grad(lambda w: (3.0 * fake_quantize_weight(w)).sum())(w)
    np.testing.assert_array_equal(gradient, jnp.full(w.shape, 3.0))


def test_kernels_have_255_values_for_each_output_channel():
    w = random_array(3, 3, 8, 4) * jnp.asarray([[[[1e-3, 1.0, 50.0, 0.0]]]])
    scale = np.asarray(weight_scale(w))
    integers = np.asarray(fake_quantize_weight(w)) / scale
    np.testing.assert_allclose(integers, np.rint(integers), rtol=0, atol=1e-4)
    assert list(np.abs(integers).max(axis=(0, 1, 2)).round(4)) == [127, 127, 127, 0]


def test_range_is_that_of_the_first_batch_and_then_a_moving_average():
    conv = QuantConv2d(Conv2d(2, 3, rngs=nnx.Rngs(0)))
    x = random_array(1, 5, 6, 2)
    y = Conv2d.__call__(conv, x)
    np.testing.assert_array_equal(conv(x), y)  # without a range: the inputs are not rounded
    conv.train()
    conv(x)
    first = np.asarray([x.min(), x.max()])
    np.testing.assert_array_equal(conv.input_range[...], first)
    conv(3 * x)
    np.testing.assert_allclose(conv.input_range[...], 1.02 * first, rtol=1e-6)
    conv.eval()
    assert not np.array_equal(conv(x), y)
    np.testing.assert_allclose(conv.input_range[...], 1.02 * first, rtol=1e-6)


@pytest.mark.parametrize("options", [dict(groups=2), dict(stride=2), dict(bias=False, padding=0)])
def test_quantized_layer_is_the_convolution_of_rounded_inputs_and_kernel(options):
    conv = Conv2d(4, 8, rngs=nnx.Rngs(0), **options)
    x = random_array(1, 7, 8, 4)
    quantized = calibrated(QuantConv2d(conv), x)
    conv.weight.set_value(fake_quantize_weight(conv.weight[...]))
    expected = conv(fake_quantize(x, quantized.input_range[...]))
    np.testing.assert_allclose(quantized(x), expected, rtol=0, atol=1e-6)


def test_network_keeps_names_weights_and_cost_and_can_be_made_float32_again(spanv2):
    net = add_quantization(spanv2, FIRST_AND_LAST)
    assert len(quantized_convs(net)) == 18 and "block_2.guidance_map_conv" in quantized_convs(net)
    before, after = (to_state_dict(n, KeyMap({})) for n in (spanv2, net))
    assert {*after} - {*before} == {f"{path}.input_range" for path in quantized_convs(net)}
    assert not quantized_convs(spanv2)
    counts, quantized_counts = (cost(n, image_size=32) for n in (spanv2, net))
    for figure in ("params", "macs", "macs_full", "activations", "convs"):
        assert getattr(quantized_counts, figure) == getattr(counts, figure)
    x = jnp.abs(random_array(1, 9, 8, 3))
    np.testing.assert_array_equal(remove_quantization(net)(x), spanv2(x))
    quantize_as_stored = quantized_convs(quantize_as(spanv2, after, KeyMap({})))
    assert quantize_as_stored == quantized_convs(net)


def test_every_layer_rounds_its_inputs_and_no_kernel_replaces_it(spanv2, monkeypatch):
    """A kernel of a whole block, or the op of the gate, would compute with inputs of float32."""
    net = calibrated(add_quantization(spanv2), jnp.abs(random_array(1, 9, 8, 3)))
    ranges = [m.input_range[...] for _, m in nnx.iter_modules(net) if isinstance(m, QuantConv2d)]
    assert len(ranges) == 22 and np.isfinite(ranges).all()
    monkeypatch.setattr(ops, "has_kernel", lambda op, operands: True)
    monkeypatch.setattr(type(net.block_2), "fused", lambda self, u: 0 * u)
    u = random_array(1, 5, 6, 4)
    assert np.any(net.block_2(u)) and not np.any(spanv2.block_2(u))


def test_unmatched_pattern_and_nothing_left_are_reported(spanv2):
    with pytest.raises(RecipeError, match="'blok_1' matches no convolution") as error:
        add_quantization(spanv2, ["conv_near", "blok_1"])
    assert "block_1.c1" in str(error.value)
    with pytest.raises(RecipeError, match="no convolution is left"):
        add_quantization(spanv2, ["*"])
