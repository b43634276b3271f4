"""SAFMN-Deep15 adds a residual to bilinear upsampling and works for images of any size."""

import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.safmn_deep15 import SAFMN
from flax import nnx
from optional import torch


@pytest.mark.parametrize(
    "h, w",
    [(1, 5), (9, 16), *(pytest.param(*side, marks=pytest.mark.slow) for side in ((1, 1), (3, 7)))],
)
def test_zero_residual_gives_bilinear_upsampling(h, w):
    x = np.random.default_rng(0).random((1, h, w, 3)).astype(np.float32)
    net = SAFMN(channels=8, num_blocks=1, rngs=nnx.Rngs(0))
    sr = net(jnp.asarray(x))
    assert sr.shape == (1, 4 * h, 4 * w, 3) and jnp.isfinite(sr).all()
    for param in (net.upsampler[0].weight, net.upsampler[0].bias):
        param[...] = jnp.zeros_like(param[...])
    interpolated = torch.nn.functional.interpolate(
        torch.tensor(x.transpose(0, 3, 1, 2)), scale_factor=4, mode="bilinear"
    )
    expected = interpolated.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(net(jnp.asarray(x)), expected, rtol=0, atol=1e-6)
