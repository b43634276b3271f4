"""Words that change the size of an image: pools and resizes, with PyTorch's bins and centres.

Images are `(N, h, w, C)`. Pools keep no zeros outside; resizes and adaptive pools are made for the
size of the whole picture, so a network that uses them is `whole_picture`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from esrjax.network.words import word

Size = tuple[int, ...]  # (h, w)


def max_pool(x: Array, window: int, stride: int) -> Array:
    """The largest value of every whole square window, without padding."""
    for axis in (1, 2):
        count = (x.shape[axis] - window) // stride + 1
        shifted = (_strided(x, axis, start, stride, count) for start in range(window))
        x = functools.reduce(jnp.maximum, shifted)
    return x


def _strided(x: Array, axis: int, start: int, stride: int, count: int) -> Array:
    where = [slice(None)] * x.ndim
    where[axis] = slice(start, start + stride * (count - 1) + 1, stride)
    return x[tuple(where)]


@word()
def average_pool(x: Array) -> Array:
    """The mean of every channel over the picture: `(N, h, w, C) -> (N, 1, 1, C)`."""
    return x.mean((1, 2), keepdims=True)


def adaptive_max_pool(x: Array, size: Size) -> Array:
    """The largest value of every bin; bins overlap where the sizes do not divide."""
    for axis, count in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        if old % count == 0:
            bins = x.reshape(*x.shape[:axis], count, old // count, *x.shape[axis + 1 :])
        else:
            bins = jnp.take(x, _bins(old, count), axis)
        x = _largest(bins, axis + 1)
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(x: Array, axis: int) -> Array:
    """`x.max(axis)`, whose gradient goes to the first of the largest.

    jax's own goes to all that equal the maximum, of which there is none, and 0/0, where XLA
    computes `x` twice and rounds it differently.
    """
    return x.max(axis)


@_largest.defjvp
def _largest_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    where = jnp.argmax(x, axis, keepdims=True)
    return x.max(axis), jnp.take_along_axis(tangent, where, axis, mode="clip").squeeze(axis)


def _bins(length: int, count: int) -> NDArray[np.int64]:
    """`(count, widest)`: the positions in every bin; the last fills up narrower ones."""
    bins = np.arange(count)
    first, last = bins * length // count, -(-(bins + 1) * length // count) - 1
    return np.minimum(first[:, None] + np.arange((last - first).max() + 1), last[:, None])


@word(static=("size",))
def nearest(x: Array, *, size: Size) -> Array:
    """Every pixel from the nearest corner: `⌊p·(old / new)⌋`, the ratio in float32."""
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        if new % old == 0:
            x = jnp.repeat(x, new // old, axis)
        else:
            source = (np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(int)
            x = jnp.take(x, np.minimum(source, old - 1), axis)
    return x


@word(static=("size",))
def bilinear(x: Array, *, size: Size) -> Array:
    """Between the two nearest pixel centres of either axis; the edge is repeated."""
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        source = np.maximum((np.arange(new) + 0.5) * (old / new) - 0.5, 0)
        low = source.astype(int)
        shape = [new if i == axis else 1 for i in range(x.ndim)]
        share = jnp.asarray((source - low).reshape(shape), x.dtype)
        near, far = (jnp.take(x, np.minimum(i, old - 1), axis) for i in (low, low + 1))
        x = near + share * (far - near)
    return x
