"""Words that change the size of an image: pools, resizes and mirrors, with PyTorch's bins.

Images are `(N, h, w, C)`. Pools keep no zeros outside; resizes and adaptive pools are made for the
size of the whole picture, so a network that uses them is `whole_picture`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import max_dim

from esrjax.network.extent import Extent, divided, known, positions, whole
from esrjax.network.words import picture_mean, plain, word

Size = tuple[Extent, ...]  # (h, w)


def max_pool(x: Array, window: int, stride: int) -> Array:
    """The largest value of every whole square window, without padding."""
    if plain.value:
        return _native_max_pool(x, window, stride)
    for axis in (1, 2):
        count = (x.shape[axis] - window) // stride + 1
        shifted = (_strided(x, axis, start, stride, count) for start in range(window))
        x = functools.reduce(jnp.maximum, shifted)
    return x


def _native_max_pool(x: Array, window: int, stride: int) -> Array:
    size, steps = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, size, steps, "VALID")


def _strided(x: Array, axis: int, start: int, stride: int, count: int) -> Array:
    where = [slice(None)] * x.ndim
    where[axis] = slice(start, start + stride * (count - 1) + 1, stride)
    return x[tuple(where)]


@word(static=("ring",))
def mirror(x: Array, *, ring: int) -> Array:
    """With `ring` more pixels on every side, the picture mirrored; its edge is not repeated."""
    return jnp.pad(x, ((0, 0), (ring, ring), (ring, ring), (0, 0)), mode="reflect")


@word()
def average_pool(x: Array) -> Array:
    """The mean of every channel over the picture: `(N, h, w, C) -> (N, 1, 1, C)`."""
    return picture_mean(x)


def adaptive_max_pool(x: Array, shrink: int) -> Array:
    """The largest value of every bin, of which an axis has `⌊old / shrink⌋`, but at least one.

    Bins overlap where the sizes do not divide.
    """
    for axis in (1, 2):
        old = x.shape[axis]
        count = max_dim(1, old // shrink)
        if known(old) and old % count == 0:
            bins = x.reshape(*x.shape[:axis], count, old // count, *x.shape[axis + 1 :])
        else:
            bins = jnp.take(x, _bins(old, count, 2 * shrink - 1), axis, mode="clip")
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


def _bins(length: Extent, count: Extent, widest: int) -> Array:
    """`(count, widest)`: the positions in every bin; the last fills up narrower ones."""
    bins, length = positions(count), whole(length)
    first = divided(bins * length, count)
    last = divided((bins + 1) * length + whole(count) - 1, count) - 1
    return jnp.minimum(first[:, None] + positions(widest)[None], last[:, None])


@word(static=("size",))
def nearest(x: Array, *, size: Size) -> Array:
    """Every pixel from the nearest corner: `⌊p·(old / new)⌋`, the ratio in float32."""
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        if known(new) and new % old == 0:
            x = jnp.repeat(x, new // old, axis)
        else:
            ratio = whole(old).astype(jnp.float32) / whole(new).astype(jnp.float32)
            source = (positions(new).astype(jnp.float32) * ratio).astype(jnp.int32)
            x = jnp.take(x, jnp.minimum(source, whole(old) - 1), axis, mode="clip")
    return x


@word(static=("size",))
def bilinear(x: Array, *, size: Size) -> Array:
    """Between the two nearest pixel centres of either axis; the edge is repeated."""
    for axis, new in zip((1, 2), size, strict=True):
        old, parts = whole(x.shape[axis]), whole(2 * new)
        source = jnp.maximum((2 * positions(new) + 1) * old - whole(new), 0)  # parts of a pixel
        low = divided(source, parts)
        share = (source - low * parts).astype(x.dtype) / parts.astype(x.dtype)
        ends = (jnp.minimum(at, old - 1) for at in (low, low + 1))
        near, far = (jnp.take(x, end, axis, mode="clip") for end in ends)
        x = near + share.reshape([1] * axis + [-1] + [1] * (3 - axis)) * (far - near)
    return x


def resize_bicubic(x: Array, size: Size) -> Array:
    """Cubic convolution with a = -3/4 around pixel centres, no antialiasing; the edge is repeated.

    What the multi-scale networks are trained on: HR at the sizes of their heads.
    """
    shape = (x.shape[0], *size, x.shape[-1])
    return jax.image.resize(x, shape, "bicubic-pytorch", antialias=False)
