"""The Haar wavelet: a picture as its half-sized mean and three half-sized differences."""

import jax.numpy as jnp
from jax import Array

Bands = tuple[Array, Array, Array, Array]


def haar(x: Array) -> Bands:
    """`(N, h, w, C)`, even sides, as LL, HL, LH, HH, each `(N, h / 2, w / 2, C)`; orthonormal.

    LL is the mean, HL the difference of right and left, LH of below and above, HH of diagonals.
    """
    n, h, w, c = x.shape
    pairs = x.reshape(n, h // 2, 2, w // 2, 2, c) / 2
    p, q, r, s = (pairs[:, :, row, :, column] for row in (0, 1) for column in (0, 1))
    return p + q + r + s, -p + q - r + s, -p - q + r + s, p - q - r + s


def inverse_haar(ll: Array, hl: Array, lh: Array, hh: Array) -> Array:
    """The picture of which these are the bands."""
    p, q = ll - hl - lh + hh, ll + hl - lh - hh
    r, s = ll - hl + lh - hh, ll + hl + lh + hh
    n, h, w, c = ll.shape
    rows = jnp.stack([jnp.stack([p, q], 3), jnp.stack([r, s], 3)], 2)
    return rows.reshape(n, 2 * h, 2 * w, c) / 2
