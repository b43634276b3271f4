"""Layers equal PyTorch's: initialisation, shapes, names and outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from optional import torch

from esrjax.nn.layers import Conv2d, LayerNorm, Linear, PReLU, Sequential, uniform_init
from esrjax.nn.state_dict import KeyMap, load_state_dict, named_parameters, to_state_dict

NO_RENAMES = KeyMap({})
CONVS = [
    dict(kernel_size=3),
    dict(kernel_size=1),
    dict(kernel_size=3, bias=False),
    dict(kernel_size=3, groups=4),
    dict(kernel_size=3, groups=2),
    dict(kernel_size=3, dilation=2),
    dict(kernel_size=(1, 5)),
    dict(kernel_size=3, stride=2),
    dict(kernel_size=3, padding=0),
    dict(kernel_size=3, padding=(2, 0)),
]


def rngs():
    return nnx.Rngs(0)


def torch_conv(kernel_size, padding="same", stride=1, **options):
    """Return PyTorch's convolution with the same arguments."""
    return torch.nn.Conv2d(
        4, 8, kernel_size, padding=1 if stride > 1 else padding, stride=stride, **options
    )


def with_weights_of(ours, theirs):
    """Return `ours` with the state dict of `theirs`."""
    return load_state_dict(
        ours, {key: value.numpy() for key, value in theirs.state_dict().items()}, NO_RENAMES
    )


def assert_same_output(ours, theirs, x, images):
    """Compare the outputs for `x`; images are transposed to PyTorch's layout and back."""
    torch_x = torch.tensor(x.transpose(0, 3, 1, 2) if images else x)
    expected = theirs(torch_x).detach().numpy()
    expected = expected.transpose(0, 2, 3, 1) if images else expected
    np.testing.assert_allclose(ours(jnp.asarray(x)), expected, rtol=0, atol=2e-6)


def random_array(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize("options", CONVS, ids=str)
def test_conv2d_equals_pytorchs(options):
    ours, theirs = Conv2d(4, 8, rngs=rngs(), **options), torch_conv(**options)
    assert_same_output(with_weights_of(ours, theirs), theirs, random_array(2, 6, 7, 4), images=True)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_pytorchs(bias):
    theirs = torch.nn.Linear(4, 8, bias=bias)
    assert_same_output(
        with_weights_of(Linear(4, 8, rngs=rngs(), bias=bias), theirs),
        theirs,
        random_array(2, 3, 4),
        False,
    )


def test_layer_norm_equals_pytorchs():
    assert_same_output(LayerNorm(4), torch.nn.LayerNorm(4), random_array(2, 3, 4), images=False)


def test_sequential_equals_pytorchs():
    ours = Sequential([Conv2d(4, 4, rngs=rngs()), Conv2d(4, 8, 1, rngs=rngs())])
    theirs = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Conv2d(4, 8, 1))
    assert_same_output(with_weights_of(ours, theirs), theirs, random_array(1, 5, 5, 4), images=True)


def test_sequential_position_is_part_of_the_path():
    net = nnx.Module()
    net.upsampler = Sequential([Conv2d(1, 1, rngs=rngs())])
    assert {path for path, _ in named_parameters(net)} == {"upsampler.0.weight", "upsampler.0.bias"}


@pytest.mark.parametrize(
    "layer, fan_in",
    [
        (Conv2d(32, 64, 3, rngs=rngs()), 32 * 9),
        (Conv2d(32, 64, (1, 5), groups=4, rngs=rngs()), 8 * 5),
        (Linear(64, 128, rngs=rngs()), 64),
    ],
    ids=["dense", "grouped", "linear"],
)
def test_initial_weights_and_biases_are_uniform_within_bound(layer, fan_in):
    bound = fan_in**-0.5
    for value in to_state_dict(layer, NO_RENAMES).values():
        assert value.min() < -0.9 * bound and value.max() > 0.9 * bound
        assert np.abs(value).max() <= bound
    weight = to_state_dict(layer, NO_RENAMES)["weight"]
    np.testing.assert_allclose(weight.std(), bound / 3**0.5, rtol=0.05)


def test_weight_and_bias_are_drawn_independently():
    weights = to_state_dict(Linear(1, 64, rngs=rngs()), NO_RENAMES)
    assert not np.allclose(weights["weight"][:, 0], weights["bias"])


def test_exported_kernel_has_pytorchs_shape():
    layer = Conv2d(4, 8, (3, 5), groups=2, rngs=rngs())
    assert to_state_dict(layer, NO_RENAMES)["weight"].shape == (8, 2, 3, 5)


def test_parameter_is_not_weakly_typed():
    """A weakly typed one, as of `jnp.full`, would compile the training step a second time."""
    assert not PReLU(3).weight[...].weak_type


def test_initial_weights_are_the_same_while_tracing():
    def draw():
        rngs = nnx.Rngs(0)
        return uniform_init(rngs, (5,), 4), uniform_init(rngs, (5,), 4)

    first, second = draw()
    assert np.abs(first).max() <= 0.5 and not np.array_equal(first, second)
    for actual, expected in zip(jax.jit(draw)(), (first, second), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_nothing_is_drawn_for_an_abstract_network():
    conv = nnx.eval_shape(lambda: Conv2d(10**6, 10**6, rngs=nnx.Rngs(0)))
    assert conv.weight.shape == (3, 3, 10**6, 10**6)  # 36 TB
