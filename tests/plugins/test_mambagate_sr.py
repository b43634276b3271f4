"""MambaGate-SR's gate, and the branches that its deploy form carries."""

import jax.numpy as jnp
import numpy as np
from esrjax_plugins.mambagate_sr import METHOD, MGAB, Conv3XC
from flax import nnx

from esrjax.network.cost import cost
from esrjax.network.reparam import deploy


def test_the_gate_starts_at_zero():
    net = MGAB(4, 2, rngs=nnx.Rngs(0))
    u = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 6, 4)), jnp.float32)
    assert not net.mamba_gate(u).any()


def test_the_branches_are_carried_and_never_read():
    net = deploy(Conv3XC(3, 4, rngs=nnx.Rngs(0)))
    x = jnp.ones((1, 4, 4, 3))
    before = net(x)
    net.sk.weight[...] = jnp.full_like(net.sk.weight[...], jnp.nan)
    np.testing.assert_array_equal(net(x), before)


def test_only_the_team_counts_the_branches_and_only_we_count_the_scan():
    counted = cost(nnx.eval_shape(lambda: deploy(METHOD.build())), uncounted=METHOD.uncounted)
    assert (counted.params, counted.params_honest) == (1_106_028, 573_168)
    tokens = 256**2
    hidden = 96 * 4 + 96 * 35 + 3 * 96 + 96 * 48  # multiply-adds per token
    assert counted.macs_honest - counted.macs == 6 * tokens * (hidden + 3 * 96 * 16)
