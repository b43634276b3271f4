"""Every part's output by its path, from a copy of the network."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax import registry
from esrjax.network.layers import Conv2d, Sequential
from esrjax.network.reparam import deploy
from esrjax.network.taps import heads, taps


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


def test_taps_are_the_outputs_of_the_parts_that_ran():
    net = Net()
    y, seen = taps(net, X)
    first, second = net.body
    twice = net.twice(net.twice(X))
    wanted = {"twice": twice, "body.0": first(twice), "body.1": second(first(twice)), "body": y}
    assert set(seen) == set(wanted)
    for path, output in wanted.items():
        np.testing.assert_array_equal(seen[path], output, err_msg=path)
    np.testing.assert_array_equal(y, net(X))


def test_a_part_that_gives_two_things_is_a_tuple():
    net = deploy(registry.method("span").build(channels=4))
    _, seen = taps(net, X)
    features, activated = seen["block_6"]
    assert features.shape == activated.shape == (1, 4, 4, 4)
    first = seen["block_6.c1"]
    np.testing.assert_allclose(activated, first / (1 + np.exp(-first)), rtol=1e-5)
    np.testing.assert_array_equal(seen["block_1.c1"].shape, seen["conv_1"].shape)


def test_heads_are_parts_that_are_called_so():
    named = {"head_2x": X, "head_2x.0": X + 1, "heads": X + 2, "body.head_3x": X + 3}
    assert list(heads(named)) == ["2x"] and heads(named)["2x"] is X


def test_the_network_is_not_changed():
    net = Net()
    graph, _ = nnx.split(net)
    taps(net, X)
    assert type(net.twice) is Conv2d and type(net.body) is Sequential
    assert nnx.split(net)[0] == graph
