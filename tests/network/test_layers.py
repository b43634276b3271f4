"""The layers are PyTorch's: initialisation, shapes, names and numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from esrjax.network.layers import Conv2d, LayerNorm, Linear, PReLU, Sequential
from esrjax.network.naming import Naming
from esrjax.network.weights import leaves, load, tensors

SAME = Naming({})
CONVS = [
    dict(kernel=3),
    dict(kernel=1),
    dict(kernel=3, bias=False),
    dict(kernel=3, groups=4),
    dict(kernel=3, groups=2),
    dict(kernel=3, dilation=2),
    dict(kernel=(1, 5)),
    dict(kernel=3, stride=2),
    dict(kernel=3, padding=0),
    dict(kernel=3, padding=(2, 0)),
]


def rngs():
    return nnx.Rngs(0)


def twin(kernel, padding="same", stride=1, **options):
    """PyTorch's convolution with the same arguments."""
    return torch.nn.Conv2d(
        4, 8, kernel, padding=1 if stride > 1 else padding, stride=stride, **options
    )


def like(ours, theirs):
    """`ours` with the weights of `theirs`, named as PyTorch named them."""
    return load(ours, {key: value.numpy() for key, value in theirs.state_dict().items()}, SAME)


def assert_equal(ours, theirs, x, images):
    """Both give the same for `x`; images are turned to PyTorch's layout and back."""
    given = torch.tensor(x.transpose(0, 3, 1, 2) if images else x)
    wanted = theirs(given).detach().numpy()
    wanted = wanted.transpose(0, 2, 3, 1) if images else wanted
    np.testing.assert_allclose(ours(jnp.asarray(x)), wanted, rtol=0, atol=2e-6)


def picture(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize("options", CONVS, ids=str)
def test_conv2d_is_pytorchs_with_its_weights(options):
    ours, theirs = Conv2d(4, 8, rngs=rngs(), **options), twin(**options)
    assert_equal(like(ours, theirs), theirs, picture(2, 6, 7, 4), images=True)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_pytorchs_with_its_weights(bias):
    theirs = torch.nn.Linear(4, 8, bias=bias)
    assert_equal(
        like(Linear(4, 8, rngs=rngs(), bias=bias), theirs), theirs, picture(2, 3, 4), False
    )


def test_layer_norm_starts_as_pytorchs_does():
    assert_equal(LayerNorm(4), torch.nn.LayerNorm(4), picture(2, 3, 4), images=False)


def test_sequential_runs_and_is_named_as_pytorchs():
    ours = Sequential([Conv2d(4, 4, rngs=rngs()), Conv2d(4, 8, 1, rngs=rngs())])
    theirs = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.Conv2d(4, 8, 1))
    assert_equal(like(ours, theirs), theirs, picture(1, 5, 5, 4), images=True)


def test_a_sequential_adds_its_positions_to_the_path():
    net = nnx.Module()
    net.upsampler = Sequential([Conv2d(1, 1, rngs=rngs())])
    assert {path for path, _ in leaves(net)} == {"upsampler.0.weight", "upsampler.0.bias"}


@pytest.mark.parametrize(
    "layer, fan_in",
    [
        (Conv2d(32, 64, 3, rngs=rngs()), 32 * 9),
        (Conv2d(32, 64, (1, 5), groups=4, rngs=rngs()), 8 * 5),
        (Linear(64, 128, rngs=rngs()), 64),
    ],
    ids=["plain", "grouped", "linear"],
)
def test_weights_and_biases_start_uniform_up_to_one_over_root_fan_in(layer, fan_in):
    bound = fan_in**-0.5
    for value in tensors(layer, SAME).values():
        assert value.min() < -0.9 * bound and value.max() > 0.9 * bound
        assert np.abs(value).max() <= bound
    weight = tensors(layer, SAME)["weight"]
    np.testing.assert_allclose(weight.std(), bound / 3**0.5, rtol=0.05)


def test_weight_and_bias_are_drawn_apart():
    drawn = tensors(Linear(1, 64, rngs=rngs()), SAME)
    assert not np.allclose(drawn["weight"][:, 0], drawn["bias"])


def test_kernels_have_pytorchs_shape_outside():
    layer = Conv2d(4, 8, (3, 5), groups=2, rngs=rngs())
    assert tensors(layer, SAME)["weight"].shape == (8, 2, 3, 5)


def test_leaves_are_of_a_type_that_a_training_step_keeps():
    """A weakly typed one, as `jnp.full` makes, would have the step compiled anew."""
    assert not PReLU(3).weight[...].weak_type
