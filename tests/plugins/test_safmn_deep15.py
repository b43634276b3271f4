"""SAFMN-Deep15 starts from bilinear enlargement and takes pictures of any size."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from esrjax_plugins.safmn_deep15 import SAFMN
from flax import nnx


@pytest.mark.parametrize("h, w", [(1, 1), (1, 5), (3, 7), (9, 16)])
def test_without_detail_it_is_bilinear(h, w):
    x = np.random.default_rng(0).random((1, h, w, 3)).astype(np.float32)
    net = SAFMN(channels=8, blocks=1, rngs=nnx.Rngs(0))
    sr = net(jnp.asarray(x))
    assert sr.shape == (1, 4 * h, 4 * w, 3) and jnp.isfinite(sr).all()
    for leaf in (net.upsampler[0].weight, net.upsampler[0].bias):
        leaf[...] = jnp.zeros_like(leaf[...])
    theirs = torch.nn.functional.interpolate(
        torch.tensor(x.transpose(0, 3, 1, 2)), scale_factor=4, mode="bilinear"
    )
    wanted = theirs.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(net(jnp.asarray(x)), wanted, rtol=0, atol=1e-6)
