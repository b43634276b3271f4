"""SPANV2: a fresh network is nearest-neighbour upsampling and what its blocks add."""

import jax.numpy as jnp
import numpy as np

from esrjax import registry


def test_a_fresh_network_without_its_blocks_upsamples_by_nearest_neighbour():
    net = registry.plain("spanv2").build(channels=4)
    weight = net.pointwise_conv.weight
    weight[...] = weight[...].at[:, :, 48:].set(0)
    lr = jnp.asarray(np.random.default_rng(0).random((1, 5, 6, 3)), jnp.float32)
    np.testing.assert_array_equal(net(lr), lr.repeat(4, axis=1).repeat(4, axis=2))


def test_gates_start_at_one():
    net = registry.plain("spanv2").build(channels=4)
    assert all(
        (block.guidance_map_conv.bias[...] == 1).all()
        for block in (net.block_2, net.block_3, net.block_4, net.block_5)
    )
