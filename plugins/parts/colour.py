"""The mean colour of DIV2K, which many networks take away first and give back at the end."""

import jax.numpy as jnp
from jax import Array

MEAN = (0.4488, 0.4371, 0.4040)  # of the RGB channels, data range 1


def mean_colour(x: Array) -> Array:
    """`(1, 1, 1, 3)` in the type of `x`."""
    return jnp.asarray(MEAN, x.dtype)[None, None, None, :]
