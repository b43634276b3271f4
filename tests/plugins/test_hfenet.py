"""HFENet's reflect-padded convolutions, and the entropy of a channel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from esrjax_plugins.hfenet import EA, ReflectDepthwiseConv2d
from flax import nnx
from optional import torch

from esrjax.nn.state_dict import KeyMap, to_state_dict


@pytest.mark.parametrize("kernel_size, dilation", [(3, 1), (5, 5), (7, 3)])
def test_reflect_padded_convolution_equals_pytorchs(kernel_size, dilation):
    x = np.random.default_rng(0).standard_normal((2, 11, 13, 3)).astype(np.float32)
    conv = ReflectDepthwiseConv2d(3, kernel_size, dilation, rngs=nnx.Rngs(0))
    torch_conv = torch.nn.Conv2d(
        *(3, 3, kernel_size),
        padding="same",
        dilation=dilation,
        groups=3,
        padding_mode="reflect",
    )
    state_dict = to_state_dict(conv, KeyMap({})).items()
    torch_conv.load_state_dict({key: torch.tensor(value) for key, value in state_dict})
    expected = torch_conv(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
    actual = conv(jnp.asarray(x))
    np.testing.assert_allclose(actual, expected.transpose(0, 2, 3, 1), rtol=0, atol=1e-5)


def entropy_attention():
    """Entropy attention with one channel and unit weights, so that the output shows the entropy."""
    net = EA(1, 1, rngs=nnx.Rngs(0))
    for conv in (net.conv1, net.conv2):
        conv.weight[...] = jnp.ones((1, 1, 1, 1))
        conv.bias[...] = jnp.zeros(1)
    return net


def test_entropy_is_of_a_gaussian_with_the_unbiased_variance():
    y = jnp.asarray([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
    variance = np.var([1, 2, 4], ddof=1)
    expected = y * jax.nn.sigmoid(0.5 * np.log(2 * np.pi * np.e * variance))
    np.testing.assert_allclose(entropy_attention()(y), expected, rtol=1e-6)


def test_a_constant_channel_becomes_zero():
    assert not entropy_attention()(jnp.ones((1, 3, 3, 1))).any()
