"""HFENet's mirrored convolutions, and the entropy of a channel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from esrjax_plugins.hfenet import EA, Mirrored
from flax import nnx

from esrjax.network.naming import Naming
from esrjax.network.weights import tensors


@pytest.mark.parametrize("kernel, dilation", [(3, 1), (5, 5), (7, 3)])
def test_a_mirrored_convolution_is_pytorchs(kernel, dilation):
    x = np.random.default_rng(0).standard_normal((2, 11, 13, 3)).astype(np.float32)
    ours = Mirrored(3, kernel, dilation, rngs=nnx.Rngs(0))
    theirs = torch.nn.Conv2d(
        *(3, 3, kernel),
        padding="same",
        dilation=dilation,
        groups=3,
        padding_mode="reflect",
    )
    held = tensors(ours, Naming({})).items()
    theirs.load_state_dict({key: torch.tensor(value) for key, value in held})
    wanted = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
    found = ours(jnp.asarray(x))
    np.testing.assert_allclose(found, wanted.transpose(0, 2, 3, 1), rtol=0, atol=1e-5)


def entropy_attention():
    """One channel in, itself squeezed; what comes out shows the entropy."""
    net = EA(1, 1, rngs=nnx.Rngs(0))
    for conv in (net.conv1, net.conv2):
        conv.weight[...] = jnp.ones((1, 1, 1, 1))
        conv.bias[...] = jnp.zeros(1)
    return net


def test_entropy_is_that_of_a_gaussian_of_the_unbiased_variance():
    y = jnp.asarray([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
    variance = np.var([1, 2, 4], ddof=1)
    wanted = y * jax.nn.sigmoid(0.5 * np.log(2 * np.pi * np.e * variance))
    np.testing.assert_allclose(entropy_attention()(y), wanted, rtol=1e-6)


def test_a_constant_channel_is_shut():
    assert not entropy_attention()(jnp.ones((1, 3, 3, 1))).any()
