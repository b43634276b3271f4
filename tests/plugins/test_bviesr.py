"""BVIESR: correlations between channels within windows, and blocks given those opposite."""

import jax.numpy as jnp
import numpy as np
from esrjax_plugins.bviesr import BVIESR, Correlation
from flax import nnx

from esrjax.network.taps import taps


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def test_half_of_the_channels_is_mixed_by_its_correlations_with_the_other():
    part, x = Correlation(10, 4, rngs=nnx.Rngs(0)), drawn(1, 4, 8, 10)
    y = np.asarray(part.qv(x))
    for corner in (0, 4):
        tokens = y[0, :, corner : corner + 4].reshape(16, 10)
        q, v = tokens[:, :5], tokens[:, 5:]
        mixed = (v @ (q.T @ v / 16).T).reshape(4, 4, 5)
        wanted = mixed @ part.proj.weight[...] + part.proj.bias[...][None, None]
        ours = part(x)[0, :, corner : corner + 4]
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)


def test_the_last_blocks_are_given_those_opposite():
    net = BVIESR(channels=10, sides=(4,) * 5, rngs=nnx.Rngs(0))
    _, seen = taps(net, drawn(1, 4, 4, 3))
    given = {}
    for i, block in enumerate(net.blocks):
        net.blocks[i] = lambda x, i=i, block=block: given.setdefault(i, x) * 0 + block(x)
    net(drawn(1, 4, 4, 3))
    for i in (1, 2):
        np.testing.assert_array_equal(given[i], seen[f"blocks.{i - 1}"])
    for i, opposite in ((3, 1), (4, 0)):
        both = jnp.concatenate([seen[f"blocks.{i - 1}"], seen[f"blocks.{opposite}"]], -1)
        np.testing.assert_array_equal(given[i], net.merge(both))


def test_pictures_much_smaller_than_the_windows_are_served():
    net = BVIESR(channels=10, sides=(32, 8, 32), rngs=nnx.Rngs(0))
    y = net(drawn(1, 2, 5, 3))
    assert y.shape == (1, 8, 20, 3)
    assert jnp.isfinite(y).all()
