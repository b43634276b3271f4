"""ERRN2's train form: padding before the first 1x1, so that the padded ring carries its bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.errn2 import ERB, RepConv
from flax import nnx

from esrjax.nn.layers import Conv2d
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import cast, perturb_weights


class ZeroPaddedERB(ERB):
    """An ERB whose 3x3 convolution is padded with zeros instead of the bias of the first 1x1."""

    def __call__(self, x):
        expanded = self.expand(x)
        padding = ((0, 0), (1, 1), (1, 1), (0, 0))
        return self.reduce(self.mix(jnp.pad(expanded, padding)) + expanded) + x


def fusion_error(block):
    with jax.enable_x64(True):
        block = perturb_weights(cast(block, jnp.float64), 0.5)
        x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 7, 3)))
        return np.abs(np.asarray(deploy(block)(x) - block(x)))


@pytest.mark.parametrize("cls", [ERB, RepConv])
def test_blocks_deploy_to_one_3x3_convolution(cls):
    block = cls(3, rngs=nnx.Rngs(0))
    assert type(deploy(block)) is Conv2d
    assert deploy(block).weight.shape == (3, 3, 3, 3)
    assert fusion_error(block).max() < 1e-11


def test_zero_padding_inside_a_block_would_change_the_outermost_pixels():
    error = fusion_error(ZeroPaddedERB(3, rngs=nnx.Rngs(0)))
    assert error[:, 0].max() > 0.1
    assert error[:, 1:-1, 1:-1].max() < 1e-11
