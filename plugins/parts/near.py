"""Initializers that make a convolution pass the image through unchanged or upsampled."""

import jax.numpy as jnp

from esrjax.nn.layers import Conv2d


def nearest_upsample_init(conv: Conv2d) -> Conv2d:
    """Set `conv` to nearest-neighbour upsampling before a pixel shuffle, and return it.

    The centre tap is 1, all others are 0. `conv` is a grouped 3x3 convolution from `C` to `C·r²`
    channels in `C` groups; a depthwise one (`r` = 1) becomes the identity.
    """
    conv.weight[...] = jnp.zeros_like(conv.weight[...]).at[1, 1].set(1)
    return conv


def identity_init(conv: Conv2d) -> Conv2d:
    """Make the 1x1 `conv` pass on its first `out_channels` inputs, and return it.

    The weights of the other inputs are left as they are.
    """
    out_channels = conv.weight.shape[-1]
    conv.weight[...] = conv.weight[...].at[0, 0, :out_channels].set(jnp.eye(out_channels))
    return conv
