"""Masking of invalid pixels: one compiled network for images of every size up to its own."""

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

_valid_mask: ContextVar[Array | None] = ContextVar("valid_mask", default=None)
# The mask is no argument of the functions that read it, so it is in no key of a jit cache: a trace
# made under one mask would be reused under another. A JAX user context is part of every such key,
# and a new number for each region keeps their traces apart.
_region_id = cast("Any", jax.make_user_context(0))
_region_ids = itertools.count(1)


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
