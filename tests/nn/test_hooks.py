"""Outputs of submodules by path, taken from a copy of the network."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax import registry
from esrjax.nn.hooks import heads, taps
from esrjax.nn.layers import Conv2d, Sequential
from esrjax.nn.reparam import deploy


class Net(nnx.Module):
    """One convolution called twice, then two in a row."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.twice = Conv2d(3, 3, rngs=rngs)
        self.body = Sequential([Conv2d(3, 4, rngs=rngs), Conv2d(4, 2, rngs=rngs)])
        self.idle = Conv2d(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.body(self.twice(self.twice(x)))


X = jnp.linspace(0, 1, 48).reshape(1, 4, 4, 3)


def test_taps_are_the_outputs_of_submodules_that_ran():
    net = Net()
    y, outputs = taps(net, X)
    first, second = net.body
    twice = net.twice(net.twice(X))
    expected = {"twice": twice, "body.0": first(twice), "body.1": second(first(twice)), "body": y}
    assert set(outputs) == set(expected)
    for path, output in expected.items():
        np.testing.assert_array_equal(outputs[path], output, err_msg=path)
    np.testing.assert_array_equal(y, net(X))


def test_tap_of_several_outputs_is_a_tuple():
    net = deploy(registry.get_entry("span").build(channels=4))
    _, outputs = taps(net, X)
    features, activated = outputs["block_6"]
    assert features.shape == activated.shape == (1, 4, 4, 4)
    first = outputs["block_6.c1"]
    np.testing.assert_allclose(activated, first / (1 + np.exp(-first)), rtol=1e-5)
    np.testing.assert_array_equal(outputs["block_1.c1"].shape, outputs["conv_1"].shape)


def test_heads_are_top_level_submodules_with_the_prefix():
    outputs = {"head_2x": X, "head_2x.0": X + 1, "heads": X + 2, "body.head_3x": X + 3}
    assert list(heads(outputs)) == ["2x"] and heads(outputs)["2x"] is X


def test_taps_do_not_change_the_network():
    net = Net()
    graphdef, _ = nnx.split(net)
    taps(net, X)
    assert type(net.twice) is Conv2d and type(net.body) is Sequential
    assert nnx.split(net)[0] == graphdef
