"""Extents of pictures that a program may learn only when it runs: arithmetic for both kinds.

An extent is an int, or `jax.export`'s symbol of one, so that one program serves every size.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

Extent = Any  # an int, or a symbolic dimension, which jax does not publish as a type


def known(extent: Extent) -> bool:
    """Whether the extent is a number already."""
    return isinstance(extent, int)


def positions(extent: Extent) -> Array:
    """`0, 1, … extent − 1`, int32."""
    return jnp.arange(extent, dtype=jnp.int32)


def whole(extent: Extent) -> Array:
    """The extent as a number to calculate with, int32."""
    return jnp.asarray(extent, jnp.int32)


def divided(x: Array, y: Extent | Array) -> Array:
    """`⌊x / y⌋` of what is not negative; `//` would look at the signs."""
    return lax.div(x, whole(y))
