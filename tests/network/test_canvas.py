"""A picture on a larger canvas is what it is on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.network import canvas
from esrjax.network.layers import Conv2d
from esrjax.network.reparam import deploy

CANVAS = (9, 11)


class Net(nnx.Module):
    """Every kind of padding: dilated, depthwise, none, and a ring of one's own."""

    scale = 1

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dilated = Conv2d(3, 4, dilation=2, rngs=rngs)
        self.depthwise = Conv2d(4, 4, groups=4, rngs=rngs)
        self.pointwise = Conv2d(4, 4, 1, rngs=rngs)
        self.ringed = Conv2d(4, 3, padding=0, rngs=rngs)

    def __call__(self, x):
        x = self.pointwise(self.depthwise(self.dilated(x)))
        return self.ringed(canvas.zero_pad(x, 1))


def spanv2():
    return deploy(registry.method("spanv2").build(channels=4))


def spread(picture):
    """`picture` in a corner of a canvas full of rubbish, and the mask of what is picture."""
    h, w = picture.shape[1:3]
    full = np.full((1, *CANVAS, 3), 7, np.float32)
    full[:, :h, :w] = picture
    mask = np.zeros(CANVAS, np.float32)
    mask[:h, :w] = 1
    return full, mask


@pytest.mark.parametrize("net", [Net(), spanv2()], ids=["net", "spanv2"])
def test_one_program_serves_every_size_exactly(net):
    traces = []

    @jax.jit
    def masked(x, mask):
        traces.append(x.shape)
        with canvas.picture(mask):
            return net(x)

    for h, w in ((5, 7), (9, 3), CANVAS):
        picture = np.random.default_rng(h).random((1, h, w, 3), np.float32)
        found = masked(*spread(picture))[:, : net.scale * h, : net.scale * w]
        np.testing.assert_allclose(found, net(picture), rtol=0, atol=1e-6)
    assert len(traces) == 1


def test_without_the_mask_it_would_not():
    net, picture = Net(), np.ones((1, 5, 7, 3), np.float32)
    found = net(spread(picture)[0])[:, :5, :7]
    assert np.abs(found - net(picture)).max() > 0.1


def test_what_does_not_exist_may_be_infinite():
    x = jnp.full((1, *CANVAS, 3), jnp.inf).at[:, :5, :7].set(1)
    with canvas.picture(spread(np.ones((1, 5, 7, 3)))[1]):
        assert np.array_equal(canvas.zero_outside(x).sum((0, 1, 2)), [35, 35, 35])


def test_a_program_traced_under_one_mask_serves_no_other():
    forward, x = jax.jit(Net().__call__), np.ones((1, *CANVAS, 3), np.float32)
    whole = forward(x)
    with canvas.picture(spread(np.ones((1, 5, 7, 3)))[1]):
        masked = forward(x)
    assert not np.allclose(whole, masked)
    np.testing.assert_array_equal(forward(x), whole)
