"""SPANV2's initialization: nearest-neighbour upsampling plus what its blocks add."""

import jax.numpy as jnp
import numpy as np

from esrjax import registry


def test_initialized_network_without_blocks_is_nearest_neighbour_upsampling():
    net = registry.get_method("spanv2").build(channels=4)
    weight = net.pointwise_conv.weight
    weight[...] = weight[...].at[:, :, 48:].set(0)
    lr = jnp.asarray(np.random.default_rng(0).random((1, 5, 6, 3)), jnp.float32)
    np.testing.assert_array_equal(net(lr), lr.repeat(4, axis=1).repeat(4, axis=2))


def test_gates_start_at_one():
    net = registry.get_method("spanv2").build(channels=4)
    assert all(
        (block.guidance_map_conv.bias[...] == 1).all()
        for block in (net.block_2, net.block_3, net.block_4, net.block_5)
    )
