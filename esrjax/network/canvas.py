"""Pictures smaller than the array they lie in: one program for every size up to its own."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import jax.numpy as jnp
from jax import Array

_picture: ContextVar[Array | None] = ContextVar("picture", default=None)


@contextmanager
def picture(mask: Array) -> Generator[None]:
    """Within, only the pixels where `mask (h, w)` is 1 exist; the others act as zero padding.

    One compiled program then serves pictures of every size up to its own, exactly.
    """
    token = _picture.set(mask)
    try:
        yield
    finally:
        _picture.reset(token)


def zero_outside(x: Array) -> Array:
    """`x (N, h, w, C)` with the pixels that do not exist set to zero."""
    mask = _picture.get()
    return x if mask is None else x * mask[None, :, :, None].astype(x.dtype)


def zero_pad(x: Array, ring: int) -> Array:
    """`(N, h, w, C) -> (N, h + 2·ring, w + 2·ring, C)`."""
    return jnp.pad(zero_outside(x), ((0, 0), (ring, ring), (ring, ring), (0, 0)))
