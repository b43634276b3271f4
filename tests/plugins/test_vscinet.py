"""VSCINet's depthwise shapes, its factors, and what the organisers' counter leaves out."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from esrjax_plugins.vscinet import METHOD, Inception, SpatialAttention
from flax import nnx

from esrjax.network.cost import cost
from esrjax.network.naming import Naming
from esrjax.network.weights import tensors


@pytest.mark.parametrize("h, w", [(8, 9), (3, 2)])
def test_every_quarter_sees_its_shape_with_the_size_kept(h, w):
    x = np.random.default_rng(0).standard_normal((1, h, w, 8)).astype(np.float32)
    net = Inception(8, rngs=nnx.Rngs(0))
    held = {key: torch.tensor(value) for key, value in tensors(net, Naming({})).items()}

    def conv(x, name):
        return torch.nn.functional.conv2d(x, held[name + ".weight"], padding="same", groups=2)

    parts = torch.tensor(x.transpose(0, 3, 1, 2)).split(2, 1)
    names = ("square", "upright", "lying", "double.0")
    found = [conv(part, name) for part, name in zip(parts, names, strict=True)]
    found[3] = conv(found[3], "double.1")
    wanted = torch.cat(found, 1).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(net(jnp.asarray(x)), wanted, rtol=0, atol=1e-6)
    assert held["upright.weight"].shape[2:] == (5, 3)


def test_the_variance_counts_for_nothing_at_first():
    net = SpatialAttention(4, rngs=nnx.Rngs(0))
    peaks, variance = jnp.full((1, 1, 1, 2), 3.0), jnp.full((1, 1, 1, 2), 5.0)
    np.testing.assert_array_equal(net.cue(peaks, variance), peaks)
    net.beta[...] = jnp.ones((1, 1, 1, 2))
    np.testing.assert_array_equal(net.cue(peaks, variance), peaks + variance)


def test_the_counter_misses_eighty_convolutions_that_its_hooks_see():
    net = nnx.eval_shape(METHOD.build)
    missed = [piece for piece in cost(net, side=16).work if ".dwc." in piece.path]
    assert sum(piece.convs for piece in missed) == 80
    assert sum(piece.macs for piece in missed) == 16 * 285 * 16**2
