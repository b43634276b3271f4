"""Haar wavelet transform of images and its inverse."""

import jax.numpy as jnp
from jax import Array

Bands = tuple[Array, Array, Array, Array]


def haar(x: Array) -> Bands:
    """Return the bands LL, HL, LH, HH of `x (N, h, w, C)`, each `(N, h / 2, w / 2, C)`.

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
