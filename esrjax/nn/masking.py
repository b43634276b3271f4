"""Image sizes: arithmetic on symbolic ones, masking of invalid pixels, size of the receptive field.

`jax.export` traces a network once for all image sizes: height and width are then symbolic
dimensions, whose values are known only when the exported function runs. A network that computes
with its dimensions (positions, ratios, divisions) uses the functions of the first part, which work
for both.

Two things do not work for a symbolic dimension: a Python `if` on it (`h > 8` raises
`InconclusiveDimensionOperation` while tracing, as it is true for some sizes only), and a NumPy
function of it. Code that decides by a size first asks `is_static`, and has another branch that is
right for every size.

A network of one static size serves all smaller images by `valid_region`: the image is placed on a
canvas of that size, and the pixels outside of it act as zero padding.
"""

import itertools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Dim = Any  # an int, or a symbolic dimension, for which JAX has no public type
ForwardFn = Callable[[Array], Array]
PROBE_SIDES = (65, 129, 257)  # of the LR probe, pixels; odd, so that one pixel is the centre
_valid_mask: ContextVar[Array | None] = ContextVar("valid_mask", default=None)
# The mask is no argument of the functions that read it, so it is in no key of a jit cache: a trace
# made under one mask would be reused under another. A JAX user context is part of every such key,
# and a new number for each region keeps their traces apart.
_region_id = cast("Any", jax.make_user_context(0))
_region_ids = itertools.count(1)


# --- arithmetic on dimensions that are ints or symbolic ------------------------------------------


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


# --- masking of invalid pixels -------------------------------------------------------------------


@contextmanager
def valid_region(mask: Array) -> Generator[None]:
    """Context in which only some pixels exist; the others act as zero padding.

    One compiled network then serves images of every size up to its own, exactly. Enter the context
    inside the function that is compiled, with the mask among that function's arguments: a mask from
    outside would be a constant of the trace, for one size only.

    Args:
        mask: `(h, w)`, 1 where a pixel exists and 0 elsewhere.
    """
    token = _valid_mask.set(mask)
    try:
        with _region_id(next(_region_ids)):
            yield
    finally:
        _valid_mask.reset(token)


def valid_mask() -> Array | None:
    """Return the mask `(h, w)` of the current context, or None where every pixel exists."""
    return _valid_mask.get()


def mask_invalid(x: Array) -> Array:
    """Return `x (N, h, w, C)` with the pixels that do not exist in this context set to zero."""
    return apply_mask(x, valid_mask())


def apply_mask(x: Array, mask: Array | None) -> Array:
    """Return `x (N, h, w, C)` with zeros where `mask (h, w)` is 0; unchanged without a mask."""
    # Not `x * mask`: a pixel that does not exist may be infinite or NaN.
    return x if mask is None else jnp.where(mask[None, :, :, None].astype(bool), x, 0)


def zero_pad(x: Array, pad: int) -> Array:
    """Pad with zeros: `(N, h, w, C) -> (N, h + 2·pad, w + 2·pad, C)`; masks invalid pixels."""
    return jnp.pad(mask_invalid(x), ((0, 0), (pad, pad), (pad, pad), (0, 0)))


# --- receptive field -----------------------------------------------------------------------------


def receptive_field_radius(forward: ForwardFn, scale: int) -> int | None:
    """Return the radius of the receptive field in LR pixels.

    A NaN in the centre of the image makes exactly those outputs NaN that depend on that pixel.

    Args:
        forward: LR images `(1, h, w, 3)` -> SR images `(1, s·h, s·w, 3)`.
        scale: Upscaling factor `s`.

    Returns:
        The largest distance, along an axis, between an LR pixel and the LR position of an output
        that depends on it; None if every output of the largest probe may depend on it, as where a
        network uses statistics of the whole image.
    """
    for side in PROBE_SIDES:
        middle = side // 2
        probe = np.full((1, side, side, 3), 0.5, np.float32)
        probe[:, middle, middle] = np.nan
        poisoned = np.isnan(np.asarray(jax.jit(forward)(probe))).max((0, 3))
        radius = int(np.abs(np.argwhere(poisoned) // scale - middle).max(initial=0))
        if radius < middle:  # else it reaches the border of the probe, and may be larger
            return radius
    return None
