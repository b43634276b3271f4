"""ERRN2's train form: a padded ring that carries the bias of the first factor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.errn2 import ERB, RepConv
from flax import nnx

from esrjax.network.layers import Conv2d
from esrjax.network.reparam import deploy
from esrjax.network.weights import cast, scattered


class EmptyRing(ERB):
    """The block with zeros, instead of the bias, around what its middle convolution sees."""

    def __call__(self, x):
        wide = self.expand(x)
        ring = ((0, 0), (1, 1), (1, 1), (0, 0))
        return self.reduce(self.mix(jnp.pad(wide, ring)) + wide) + x


def error(block):
    with jax.enable_x64(True):
        block = scattered(cast(block, jnp.float64), 0.5)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 7, 3)))
        return np.abs(np.asarray(deploy(block)(x) - block(x)))


@pytest.mark.parametrize("kind", [ERB, RepConv])
def test_it_becomes_one_3x3_convolution(kind):
    block = kind(3, rngs=nnx.Rngs(0))
    assert type(deploy(block)) is Conv2d
    assert deploy(block).weight.shape == (3, 3, 3, 3)
    assert error(block).max() < 1e-11


def test_zeros_in_the_ring_would_show_in_the_outermost_pixels():
    missed = error(EmptyRing(3, rngs=nnx.Rngs(0)))
    assert missed[:, 0].max() > 0.1
    assert missed[:, 1:-1, 1:-1].max() < 1e-11
