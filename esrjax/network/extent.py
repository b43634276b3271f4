"""Arithmetic on image dimensions that are ints or symbolic.

`jax.export` traces a network once for all image sizes: height and width are then symbolic
dimensions, whose values are known only when the exported function runs. A network that computes
with its dimensions (positions, ratios, divisions) uses these functions, which work for both.

Two things do not work for a symbolic dimension: a Python `if` on it (`h > 8` raises
`InconclusiveDimensionOperation` while tracing, as it is true for some sizes only), and a NumPy
function of it. Code that decides by a size first asks `is_static`, and has another branch that is
right for every size.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

Dim = Any  # an int, or a symbolic dimension, for which JAX has no public type


def is_static(dim: Dim) -> bool:
    """Return whether the dimension is an int, so that Python may decide by its value."""
    return isinstance(dim, int)


def arange(stop: Dim) -> Array:
    """Return `0, 1, … stop − 1`, int32."""
    return jnp.arange(stop, dtype=jnp.int32)


def dim_as_array(dim: Dim) -> Array:
    """Return the dimension as an int32 scalar to compute with.

    A symbolic dimension then becomes a value of the exported graph, derived from the shape of its
    input.
    """
    return jnp.asarray(dim, jnp.int32)


def floor_div(x: Array, y: Dim | Array) -> Array:
    """Return `⌊x / y⌋` of non-negative integers; `//` would lower to code that looks at signs."""
    return lax.div(x, dim_as_array(y))
