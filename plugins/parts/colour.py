"""Mean RGB of DIV2K, which many networks subtract first and add back at the end."""

import jax.numpy as jnp
from jax import Array

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # R, G, B in [0, 1]


def rgb_mean(x: Array) -> Array:
    """Return the mean as `(1, 1, 1, 3)` in the dtype of `x`."""
    return jnp.asarray(RGB_MEAN, x.dtype)[None, None, None, :]
