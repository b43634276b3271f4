"""Pictures smaller than the array they lie in: one program for every size up to its own."""

import itertools
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import Array

_picture: ContextVar[Array | None] = ContextVar("picture", default=None)
# jit does not see the mask, but it sees this: what was traced under one mask serves no other.
_visit = cast("Any", jax.make_user_context(0))
_visits = itertools.count(1)


@contextmanager
def picture(mask: Array) -> Generator[None]:
    """Within, only the pixels where `mask (h, w)` is 1 exist; the others act as zero padding.

    One compiled program then serves pictures of every size up to its own, exactly. Enter it inside
    the function that is compiled, with the mask among its arguments.
    """
    token = _picture.set(mask)
    try:
        with _visit(next(_visits)):
            yield
    finally:
        _picture.reset(token)


def mask() -> Array | None:
    """The mask `(h, w)` that is in force, or None where every pixel exists."""
    return _picture.get()


def zero_outside(x: Array) -> Array:
    """`x (N, h, w, C)` with the pixels that do not exist set to zero."""
    return zeroed(x, mask())


def zeroed(x: Array, mask: Array | None) -> Array:
    """`x (N, h, w, C)` with zero where `mask (h, w)` is 0; without a mask as it is."""
    # Not a product: what does not exist may be infinite.
    return x if mask is None else jnp.where(mask[None, :, :, None].astype(bool), x, 0)


def zero_pad(x: Array, ring: int) -> Array:
    """`(N, h, w, C) -> (N, h + 2·ring, w + 2·ring, C)`."""
    return jnp.pad(zero_outside(x), ((0, 0), (ring, ring), (ring, ring), (0, 0)))
