"""BVIESR: channel self-correlation within windows, and blocks that receive opposite ones."""

import jax.numpy as jnp
import numpy as np
from esrjax_plugins.bviesr import BVIESR, ChannelSelfCorrelation
from flax import nnx

from esrjax.nn.hooks import taps


def normal_array(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_correlations_of_the_halves_mix_the_second_half():
    module, x = ChannelSelfCorrelation(10, 4, rngs=nnx.Rngs(0)), normal_array(1, 4, 8, 10)
    y = np.asarray(module.qv(x))
    for column in (0, 4):
        tokens = y[0, :, column : column + 4].reshape(16, 10)
        q, v = tokens[:, :5], tokens[:, 5:]
        mixed = (v @ (q.T @ v / 16).T).reshape(4, 4, 5)
        expected = mixed @ module.proj.weight[...] + module.proj.bias[...][None, None]
        actual = module(x)[0, :, column : column + 4]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


def test_later_blocks_receive_the_opposite_block():
    net = BVIESR(channels=10, window_sizes=(4,) * 5, rngs=nnx.Rngs(0))
    _, outputs = taps(net, normal_array(1, 4, 4, 3))
    inputs = {}
    for i, block in enumerate(net.blocks):
        net.blocks[i] = lambda x, i=i, block=block: inputs.setdefault(i, x) * 0 + block(x)
    net(normal_array(1, 4, 4, 3))
    for i in (1, 2):
        np.testing.assert_array_equal(inputs[i], outputs[f"blocks.{i - 1}"])
    for i, opposite in ((3, 1), (4, 0)):
        concat = jnp.concatenate([outputs[f"blocks.{i - 1}"], outputs[f"blocks.{opposite}"]], -1)
        np.testing.assert_array_equal(inputs[i], net.merge(concat))


def test_images_much_smaller_than_the_windows_work():
    net = BVIESR(channels=10, window_sizes=(32, 8, 32), rngs=nnx.Rngs(0))
    y = net(normal_array(1, 2, 5, 3))
    assert y.shape == (1, 8, 20, 3)
    assert jnp.isfinite(y).all()
