"""Small pieces of many networks: weight URLs, mean RGB, initializers, ESA and Haar wavelets."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.nn.functional import max_pool, resize_bilinear
from esrjax.nn.layers import Conv2d

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K; R, G, B in [0, 1]
WEIGHTS_URL = "https://raw.githubusercontent.com/Amazingren/{}/{}/model_zoo/{}"


def ntire2026_url(filename: str) -> str:
    """Return the URL of a checkpoint of the NTIRE 2026 efficient super-resolution challenge.

    The organisers' repository is taken at a fixed commit.
    """
    return WEIGHTS_URL.format("NTIRE2026_ESR", "4592ce6db68b395699f13e7e2a4e3baf317ef1c6", filename)


def ntire2025_url(filename: str) -> str:
    """Return the URL of a checkpoint of the NTIRE 2025 challenge, likewise."""
    return WEIGHTS_URL.format("NTIRE2025_ESR", "b69fb668c0362deb696eecbfdebfaa5c2fcdfcb4", filename)


def rgb_mean(x: Array) -> Array:
    """Return the mean RGB of DIV2K as `(1, 1, 1, 3)`, in the dtype of `x`.

    Many networks subtract it first and add it back at the end.
    """
    return jnp.asarray(RGB_MEAN, x.dtype)[None, None, None, :]


# --- initializers ---


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


# --- enhanced spatial attention ---


class ESA(nnx.Module):
    """Enhanced spatial attention: gate `x (N, h, w, C)` by a mask computed at a coarse resolution.

    Both sides must have 15 pixels or more.
    Source: RFANet (Liu et al., CVPR 2020), in the lighter form of RFDN (arXiv:2009.11551) with one
    convolution after the pooling.

    Args:
        channels: `C`.
        esa_channels: Channels of the coarse branch.
    """

    def __init__(self, channels: int, esa_channels: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv2d(channels, esa_channels, 1, rngs=rngs)
        self.conv_f = Conv2d(esa_channels, esa_channels, 1, rngs=rngs)
        self.conv2 = Conv2d(esa_channels, esa_channels, padding=0, stride=2, rngs=rngs)
        self.conv3 = Conv2d(esa_channels, esa_channels, rngs=rngs)
        self.conv4 = Conv2d(esa_channels, channels, 1, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        _, h, w, _ = x.shape
        c1 = self.conv1(x)
        c3 = self.conv3(max_pool(self.conv2(c1), 7, 3))
        gate = resize_bilinear(c3, size=(h, w)) + self.conv_f(c1)
        return x * jax.nn.sigmoid(self.conv4(gate))


# --- Haar wavelet transform ---


Bands = tuple[Array, Array, Array, Array]


def haar(x: Array) -> Bands:
    """Return the Haar bands LL, HL, LH, HH of `x (N, h, w, C)`, each `(N, h / 2, w / 2, C)`.

    `h` and `w` must be even. LL is the mean, HL the difference right minus left, LH bottom minus
    top, HH the diagonal difference. The transform is orthonormal.
    """
    n, h, w, c = x.shape
    pairs = x.reshape(n, h // 2, 2, w // 2, 2, c) / 2
    p, q, r, s = (pairs[:, :, row, :, column] for row in (0, 1) for column in (0, 1))
    return p + q + r + s, -p + q - r + s, -p - q + r + s, p - q - r + s


def inverse_haar(ll: Array, hl: Array, lh: Array, hh: Array) -> Array:
    """Return the `(N, 2h, 2w, C)` image whose bands, each `(N, h, w, C)`, are given."""
    p, q = ll - hl - lh + hh, ll + hl - lh - hh
    r, s = ll - hl + lh - hh, ll + hl + lh + hh
    n, h, w, c = ll.shape
    rows = jnp.stack([jnp.stack([p, q], 3), jnp.stack([r, s], 3)], 2)
    return rows.reshape(n, 2 * h, 2 * w, c) / 2
