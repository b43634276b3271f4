"""Ops that change the size of an image: pooling, resizing, reflection padding, as in PyTorch.

Images are `(N, h, w, C)`; sizes may be symbolic (`esrjax.network.extent`). These ops ignore
`canvas.valid_region`. Resizing and adaptive pooling depend on the size of the whole image, so that
the method of a network that uses them sets `needs_full_image`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import max_dim

from esrjax.network.extent import Dim, arange, dim_as_array, floor_div, is_static
from esrjax.network.words import counted_op, native_lowering, spatial_mean

OutputSize = tuple[Dim, ...]  # (h, w)


def max_pool(x: Array, kernel_size: int, stride: int) -> Array:
    """Return the maximum of every square window that lies inside the image.

    Written as maxima of strided slices, for XLA's CPU backend runs `reduce-window` in scalar code.

    Args:
        x: `(N, h, w, C)`.
        kernel_size: Side of the window.
        stride: Of both axes.
    """
    if native_lowering.value:
        return _lax_max_pool(x, kernel_size, stride)
    for axis in (1, 2):
        num_windows = (x.shape[axis] - kernel_size) // stride + 1
        slices = (
            _strided_slice(x, axis, start, stride, num_windows) for start in range(kernel_size)
        )
        x = functools.reduce(jnp.maximum, slices)
    return x


def _lax_max_pool(x: Array, kernel_size: int, stride: int) -> Array:
    window_dimensions, window_strides = (1, kernel_size, kernel_size, 1), (1, stride, stride, 1)
    return lax.reduce_window(
        x, np.array(-np.inf, x.dtype), lax.max, window_dimensions, window_strides, "VALID"
    )


def _strided_slice(x: Array, axis: int, start: int, stride: int, count: int) -> Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, start + stride * (count - 1) + 1, stride)
    return x[tuple(index)]


@counted_op(static=("pad",))
def reflect_pad(x: Array, *, pad: int) -> Array:
    """Pad by reflection, which does not repeat the edge (PyTorch's `ReflectionPad2d`).

    Args:
        x: `(N, h, w, C)`, larger than `pad` in height and width.
        pad: Pixels on every side.
    """
    return jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")


@counted_op()
def global_avg_pool(x: Array) -> Array:
    """Return the mean of every channel over the image: `(N, h, w, C) -> (N, 1, 1, C)`."""
    return spatial_mean(x)


def adaptive_max_pool(x: Array, factor: int) -> Array:
    """Return the maximum of every bin, as PyTorch's `adaptive_max_pool2d` for `size // factor`.

    Args:
        x: `(N, h, w, C)`.
        factor: An axis of length `n` has `⌊n / factor⌋` bins, but at least one. Bins overlap where
            their number does not divide the length.
    """
    for axis in (1, 2):
        length = x.shape[axis]
        num_bins = max_dim(1, length // factor)
        if is_static(length) and length % num_bins == 0:
            bins = x.reshape(*x.shape[:axis], num_bins, length // num_bins, *x.shape[axis + 1 :])
        else:
            bins = jnp.take(x, _bin_indices(length, num_bins, 2 * factor - 1), axis, mode="clip")
        x = _max_first_grad(bins, axis + 1)
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_first_grad(x: Array, axis: int) -> Array:
    """Return `x.max(axis)`, whose gradient goes to the first of the largest, as PyTorch's.

    JAX's own gradient goes to all elements that equal the maximum. In a jitted network XLA may
    compute `x` a second time with other roundings; then no element equals it, and the gradient,
    divided by their number, is 0/0.
    """
    return x.max(axis)


@_max_first_grad.defjvp
def _max_first_grad_jvp(
    axis: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    first = jnp.argmax(x, axis, keepdims=True)
    return x.max(axis), jnp.take_along_axis(tangent, first, axis, mode="clip").squeeze(axis)


def _bin_indices(length: Dim, num_bins: Dim, max_width: int) -> Array:
    """Return the positions in every bin, `(num_bins, max_width)`.

    PyTorch's bins: bin i goes from ⌊i·n / bins⌋ to ⌈(i + 1)·n / bins⌉. A narrower bin repeats its
    last position, by which a maximum does not change.
    """
    bins, length = arange(num_bins), dim_as_array(length)
    first = floor_div(bins * length, num_bins)
    last = floor_div((bins + 1) * length + dim_as_array(num_bins) - 1, num_bins) - 1
    return jnp.minimum(first[:, None] + arange(max_width)[None], last[:, None])


@counted_op(static=("size",))
def resize_nearest(x: Array, *, size: OutputSize) -> Array:
    """Resize by nearest neighbour: output `p` is input `⌊p · (old / new)⌋`, as in PyTorch.

    The ratio is rounded to float32 first, as in PyTorch; exact ratios would differ in a few pixels.

    Args:
        x: `(N, h, w, C)`.
        size: Output size `(h, w)`.
    """
    for axis, new_len in zip((1, 2), size, strict=True):
        old_len = x.shape[axis]
        if is_static(new_len) and new_len % old_len == 0:
            x = jnp.repeat(x, new_len // old_len, axis)
        else:
            ratio = dim_as_array(old_len).astype(jnp.float32) / dim_as_array(new_len).astype(
                jnp.float32
            )
            source = (arange(new_len).astype(jnp.float32) * ratio).astype(jnp.int32)
            x = jnp.take(x, jnp.minimum(source, dim_as_array(old_len) - 1), axis, mode="clip")
    return x


@counted_op(static=("size",))
def resize_bilinear(x: Array, *, size: OutputSize) -> Array:
    """Resize bilinearly (`align_corners=False`, no antialiasing); the edge is repeated.

    Positions are integers over a common denominator, so that they are exact for every size.

    Args:
        x: `(N, h, w, C)`.
        size: Output size `(h, w)`.
    """
    for axis, new_len in zip((1, 2), size, strict=True):
        old_len, denominator = dim_as_array(x.shape[axis]), dim_as_array(2 * new_len)
        # Position in the input, (p + ½)·old/new − ½, as a numerator over `denominator`.
        source = jnp.maximum((2 * arange(new_len) + 1) * old_len - dim_as_array(new_len), 0)
        low = floor_div(source, denominator)
        weight = (source - low * denominator).astype(x.dtype) / denominator.astype(x.dtype)
        indices = (jnp.minimum(position, old_len - 1) for position in (low, low + 1))
        low_values, high_values = (jnp.take(x, index, axis, mode="clip") for index in indices)
        x = low_values + weight.reshape([1] * axis + [-1] + [1] * (3 - axis)) * (
            high_values - low_values
        )
    return x


def resize_bicubic(x: Array, size: OutputSize) -> Array:
    """Resize bicubically as PyTorch: a = −3/4, no antialiasing; the edge is repeated.

    Multi-scale networks are trained with HR images that are resized like this to the sizes of their
    heads' outputs.

    Args:
        x: `(N, h, w, C)`.
        size: Output size `(h, w)`.
    """
    shape = (x.shape[0], *size, x.shape[-1])
    return jax.image.resize(x, shape, "bicubic-pytorch", antialias=False)
