"""MambaGate-SR's gate, and the branches that its deploy form keeps."""

import jax.numpy as jnp
import numpy as np
from esrjax_plugins.mambagate_sr import METHOD, MGAB, Conv3XCWithBranches
from flax import nnx

from esrjax.nn.cost import cost
from esrjax.nn.reparam import deploy


def test_the_gate_starts_at_zero():
    net = MGAB(4, 2, rngs=nnx.Rngs(0))
    u = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 6, 4)), jnp.float32)
    assert not net.mamba_gate(u).any()


def test_deploy_form_keeps_the_branches_and_never_uses_them():
    net = deploy(Conv3XCWithBranches(3, 4, rngs=nnx.Rngs(0)))
    x = jnp.ones((1, 4, 4, 3))
    expected = net(x)
    net.sk.weight[...] = jnp.full_like(net.sk.weight[...], jnp.nan)
    np.testing.assert_array_equal(net(x), expected)


def test_official_count_has_the_branches_and_full_count_has_the_scan():
    net = nnx.eval_shape(lambda: deploy(METHOD.build()))
    report = cost(net, excluded=METHOD.cost_options.excluded)
    assert (report.params, report.params_full) == (1_106_028, 573_168)
    num_tokens = 256**2
    macs_per_token = 96 * 4 + 96 * 35 + 3 * 96 + 96 * 48  # conv1d, x_proj, dt_proj, out_proj
    assert report.macs_full - report.macs == 6 * num_tokens * (macs_per_token + 3 * 96 * 16)
