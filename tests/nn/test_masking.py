"""A network gives the same for an image on a larger, masked canvas as for the image itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from esrjax import registry
from esrjax.nn import masking
from esrjax.nn.layers import Conv2d
from esrjax.nn.reparam import deploy

CANVAS = (9, 11)


class Net(nnx.Module):
    """Every case of padding: dilated, depthwise, none, and explicit `zero_pad`."""

    scale = 1

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dilated = Conv2d(3, 4, dilation=2, rngs=rngs)
        self.depthwise = Conv2d(4, 4, groups=4, rngs=rngs)
        self.pointwise = Conv2d(4, 4, 1, rngs=rngs)
        self.unpadded = Conv2d(4, 3, padding=0, rngs=rngs)

    def __call__(self, x):
        x = self.pointwise(self.depthwise(self.dilated(x)))
        return self.unpadded(masking.zero_pad(x, 1))


def spanv2():
    return deploy(registry.get_entry("spanv2").build(channels=4))


def place_on_canvas(image):
    """Return `image` in a corner of a canvas of other values, and the mask of its pixels."""
    h, w = image.shape[1:3]
    padded = np.full((1, *CANVAS, 3), 7, np.float32)
    padded[:, :h, :w] = image
    mask = np.zeros(CANVAS, np.float32)
    mask[:h, :w] = 1
    return padded, mask


@pytest.mark.parametrize("net", [Net(), spanv2()], ids=["net", "spanv2"])
def test_one_compilation_serves_every_image_size(net):
    traces = []

    @jax.jit
    def masked(x, mask):
        traces.append(x.shape)
        with masking.valid_region(mask):
            return net(x)

    for h, w in ((5, 7), (9, 3), CANVAS):
        image = np.random.default_rng(h).random((1, h, w, 3), np.float32)
        out = masked(*place_on_canvas(image))[:, : net.scale * h, : net.scale * w]
        np.testing.assert_allclose(out, net(image), rtol=0, atol=1e-6)
    assert len(traces) == 1


def test_without_the_mask_outputs_differ():
    net, image = Net(), np.ones((1, 5, 7, 3), np.float32)
    out = net(place_on_canvas(image)[0])[:, :5, :7]
    assert np.abs(out - net(image)).max() > 0.1


def test_invalid_pixels_may_be_infinite():
    x = jnp.full((1, *CANVAS, 3), jnp.inf).at[:, :5, :7].set(1)
    with masking.valid_region(place_on_canvas(np.ones((1, 5, 7, 3)))[1]):
        assert np.array_equal(masking.mask_invalid(x).sum((0, 1, 2)), [35, 35, 35])


def test_trace_under_one_mask_is_not_reused_under_another():
    forward, x = jax.jit(Net().__call__), np.ones((1, *CANVAS, 3), np.float32)
    unmasked = forward(x)
    with masking.valid_region(place_on_canvas(np.ones((1, 5, 7, 3)))[1]):
        masked = forward(x)
    assert not np.allclose(unmasked, masked)
    np.testing.assert_array_equal(forward(x), unmasked)
