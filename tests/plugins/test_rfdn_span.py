"""RFDN_SPAN: half of the channels are distilled four times and gate the block."""

import jax
import jax.numpy as jnp
import numpy as np
from esrjax_plugins.rfdn_span import RFDB
from flax import nnx

from esrjax.nn.hooks import taps


def test_block_gates_with_the_distilled_features():
    block = RFDB(6, rngs=nnx.Rngs(0))
    distill = (block.c1_d, block.c2_d, block.c3_d, block.c4)
    assert [conv.bias.shape for conv in distill] == [(3,)] * 4
    u = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 5, 6)), jnp.float32)
    block.c5.weight.set_value(jnp.zeros_like(block.c5.weight[...]))
    h = block.c5.bias[...][None, None, None]
    np.testing.assert_allclose(block(u), (h + u) * (jax.nn.sigmoid(h) - 0.5), atol=1e-6)


def test_a_refinement_has_its_residual_inside_the_activation():
    block = RFDB(2, rngs=nnx.Rngs(0))
    for conv in (block.c1_r, block.c2_r, block.c3_r, block.c4):
        conv.weight.set_value(jnp.zeros_like(conv.weight[...]))
        conv.bias.set_value(jnp.zeros_like(conv.bias[...]))
    block.c4.weight[...] = block.c4.weight[...].at[1, 1, 0].set(1)
    _, outputs = taps(block, -jnp.ones((1, 1, 1, 2)))
    np.testing.assert_allclose(outputs["c4"].item(), -(0.05**3), rtol=1e-6)
