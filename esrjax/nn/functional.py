"""Functional ops of networks, as PyTorch's `torch.nn.functional`: every one a function of arrays.

By topic: ops that are counted by their names (`counted_op`); convolutions, matmuls and einsums;
softmax and sums; normalisation; activations; pooling, resizing and other resampling. Images are
`(N, h, w, C)`; kernels are `(kh, kw, in / groups, out)`.

An op has the same values on every platform, up to rounding, and is lowered to a fast form on each.
XLA's CPU backend splits a sum of more than 32 elements in two (for precision), the first a
`reduce-window` whose code is scalar, and reduces maxima in scalar code too. So on a CPU

- a sum along the last axis is a matmul with a vector of ones (`sum_by_matmul`);
- a maximum is taken of halves, element-wise, until few elements are left (`_max_last_axis`), or of
  strided slices (`max_pool`);
- a mean over pixels is one along each row, and then one of the rows' means.

A softmax of 16,384 x 256 scores takes 4.0 ms instead of 8.1 ms, a group norm of 128 x 128 x 40
0.30 ms instead of 0.70 ms (docs/log.md).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import max_dim

from esrjax.nn import conv_lowering
from esrjax.nn.compilation import platform_dependent
from esrjax.nn.masking import Dim, arange, dim_as_array, floor_div, is_static

OP_PREFIX = "op_"  # of the traced names of counted ops
# Name of the jitted `sum_by_matmul` in a trace, by which `nn.cost` counts a sum and not a
# matmul; to be renamed together.
SUM_OP = "sum_by_matmul"
MAX_DIRECT_SUM = 32  # elements that XLA's CPU backend sums without a reduce-window
MAX_DIRECT_MAX = 8  # elements whose maximum is left to XLA: halving down to one is no faster
# True: an op is lowered to the one XLA op of its name and not to the form that is fastest on a
# platform, for exports and other compilers, which have fast forms of their own. A JAX user context,
# so that it is part of every jit cache key.
native_lowering = cast("Any", jax.make_user_context(False))
Function = TypeVar("Function", bound=Callable[..., Any])
OutputSize = tuple[Dim, ...]  # (h, w)


def counted_op(*, static: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Return a decorator that makes an op of a function: a jitted function with a traced name.

    In a trace, the call is one `jit` equation with the name `OP_PREFIX + function.__name__`. If
    `esrjax.nn.cost.MAC_RULES` has a rule of that name, the op is counted by that rule, else
    what is inside; a function and its rule must therefore be renamed together.

    Args:
        static: Names of those arguments that are not arrays.
    """

    def wrap(function: Function) -> Function:
        @functools.wraps(function)
        def named(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        named.__name__ = named.__qualname__ = OP_PREFIX + function.__name__
        return jax.jit(named, static_argnames=static)  # pyright: ignore[reportReturnType] # jit keeps the signature

    return wrap


# --- convolutions, matmuls, einsums --------------------------------------------------------------


@counted_op(static=("padding", "stride", "dilation", "groups"))
def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    padding: tuple[int, int] = (0, 0),
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
) -> Array:
    """Return the 2-D convolution (cross-correlation) of images, plus a bias.

    How it is lowered is decided in `esrjax.nn.conv_lowering`.

    Args:
        x: Images `(N, h, w, in)`.
        w: Kernel `(kh, kw, in / groups, out)`.
        b: Bias `(out,)`.
        padding: Zeros above and below, and to the left and right.
        stride: Of both axes.
        dilation: Of both axes.
        groups: Number of groups of channels.
    """
    lowering = conv_lowering.lax_conv2d if native_lowering.value else conv_lowering.platform_conv2d
    y = lowering(x, w, padding=padding, stride=stride, dilation=dilation, groups=groups)
    return y if b is None else y + _along_last_axis(b, y)


@counted_op(static=("padding", "groups"))
def conv1d(
    x: Array, w: Array, b: Array | None = None, *, padding: int = 0, groups: int = 1
) -> Array:
    """Return the 1-D convolution (cross-correlation) of tokens, plus a bias.

    Args:
        x: Tokens `(N, L, in)`.
        w: Kernel `(k, in / groups, out)`.
        b: Bias `(out,)`.
        padding: Zeros at each end.
        groups: Number of groups of channels.
    """
    return conv2d(x[:, None], w[None], b, padding=(0, padding), groups=groups)[:, 0]


@counted_op()
def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """Return `x (..., in) @ w (in, out) + b (out,)`; note that `w` is PyTorch's transposed."""
    y = x @ w
    return y if b is None else y + _along_last_axis(b, y)


@counted_op()
def matmul(x: Array, y: Array) -> Array:
    """Return the batched matmul `(..., n, k), (..., k, m) -> (..., n, m)`."""
    return x @ y


@counted_op(static=("equation",))
def einsum(equation: str, x: Array, y: Array) -> Array:
    """Return `jnp.einsum(equation, x, y)`.

    Use it where the official code has an einsum and `matmul` where that has a matmul: fvcore counts
    the two differently (`esrjax.nn.cost.FVCORE_RULES`).
    """
    return jnp.einsum(equation, x, y)


def _along_last_axis(vector: Array, x: Array) -> Array:
    """Return the vector with as many axes as `x`: ranks are never promoted by themselves."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))


# --- softmax and sums ----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="axis")
def softmax(x: Array, axis: int = -1) -> Array:
    """Return the softmax of `x` along `axis`, computed in float32 at least."""
    x32 = at_least_f32(x)
    if axis == -1 and not native_lowering.value:
        y = platform_dependent(x32, cpu=_softmax_last_axis, default=jax.nn.softmax)
    else:
        y = jax.nn.softmax(x32, axis)
    return y.astype(x.dtype)


def attention_from_logits(logits: Array, v: Array) -> Array:
    """Return `softmax(logits) v`: `(..., L, K), (..., K, d) -> (..., L, d)`.

    On a CPU the matmul comes before the division by the softmax's sum: then `L·d` elements are
    divided and not `L·K`, and the normalised `(L, K)` array is never written.
    """

    def softmax_then_matmul(logits: Array, v: Array) -> Array:
        return matmul(jax.nn.softmax(at_least_f32(logits)).astype(v.dtype), v)

    def matmul_then_normalize(logits: Array, v: Array) -> Array:
        exps, sums = _exp_and_sum(at_least_f32(logits))
        return (at_least_f32(matmul(exps.astype(v.dtype), v)) / sums).astype(v.dtype)

    if native_lowering.value:
        return softmax_then_matmul(logits, v)
    return platform_dependent(logits, v, cpu=matmul_then_normalize, default=softmax_then_matmul)


# With a derivative of its own, as jax.nn.softmax, which needs the output only: JAX would
# differentiate exp, sum and quotient, and keep the residuals of each. From a custom_jvp JAX derives
# the backward pass too.
@jax.custom_jvp
def _softmax_last_axis(x: Array) -> Array:
    exps, sums = _exp_and_sum(x)
    return exps / sums


@_softmax_last_axis.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y, (tangent,) = _softmax_last_axis(*primals), tangents
    return y, y * (tangent - sum_last_axis(y * tangent))


def _exp_and_sum(x: Array) -> tuple[Array, Array]:
    """Return `exp(x − max x)` and its sum along the last axis, in the forms fast on a CPU.

    The two parts of a softmax that cannot overflow: `(..., n) -> (..., n), (..., 1)`. No gradient
    flows through the maximum, by which the softmax does not change.
    """
    exps = jnp.exp(x - lax.stop_gradient(_max_last_axis(x)))
    return exps, sum_by_matmul(exps)


def _max_last_axis(x: Array) -> Array:
    """Return the maximum along the last axis; the two halves overlap where `n` is odd."""
    while (n := x.shape[-1]) > MAX_DIRECT_MAX:
        half = (n + 1) // 2
        x = jnp.maximum(x[..., :half], x[..., n - half :])
    return x.max(-1, keepdims=True)


@jax.jit
def sum_last_axis(x: Array) -> Array:
    """Return the sum along the last axis: `(..., n) -> (..., 1)`."""
    direct_sum = functools.partial(jnp.sum, axis=-1, keepdims=True)
    if native_lowering.value or x.shape[-1] <= MAX_DIRECT_SUM:
        return direct_sum(x)
    return platform_dependent(x, cpu=sum_by_matmul, default=direct_sum)


@jax.jit
def sum_by_matmul(x: Array) -> Array:
    """Return the sum along the last axis as a matmul with ones: `(..., n) -> (..., 1)`."""
    ones = jnp.ones(x.shape[-1], x.dtype)
    return lax.dot_general(x, ones, (((x.ndim - 1,), (0,)), ((), ())))[..., None]


def spatial_mean(x: Array) -> Array:
    """Return the mean over pixels: `(N, h, w, ...) -> (N, 1, 1, ...)`."""
    if native_lowering.value:
        return x.mean((1, 2), keepdims=True)
    return x.mean(2, keepdims=True).mean(1, keepdims=True)  # of rows first


def spatial_var(x: Array) -> Array:
    """Return the unbiased variance over pixels (as PyTorch): `(N, h, w, ...) -> (N, 1, 1, ...)`."""
    if native_lowering.value:
        return x.var((1, 2), keepdims=True, ddof=1)
    num_pixels = x.shape[1] * x.shape[2]
    biased_var = spatial_mean(jnp.square(x - spatial_mean(x)))
    return biased_var * (num_pixels / (num_pixels - 1))


def at_least_f32(x: Array) -> Array:
    """Return `x` in float32 if its dtype is narrower, for statistics, exponentials and states."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


# --- normalisation and activations ---------------------------------------------------------------


@counted_op(static=("eps",))
def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Return the layer normalisation of `x (..., C)` over its channels, in float32 at least.

    Args:
        x: `(..., C)`.
        weight: Scale `(C,)`.
        bias: Shift `(C,)`.
        eps: Added to the variance.
    """
    y = _standardize(at_least_f32(x), _mean_last_axis, eps)
    return _scale_and_shift(y, weight, bias).astype(x.dtype)


@counted_op(static=("num_groups", "eps"))
def group_norm(
    x: Array, weight: Array, bias: Array, *, num_groups: int = 1, eps: float = 1e-5
) -> Array:
    """Return the normalisation of groups of channels over whole images, in float32 at least.

    Args:
        x: `(N, h, w, C)`.
        weight: Scale `(C,)`.
        bias: Shift `(C,)`.
        num_groups: Number of groups.
        eps: Added to the variance.
    """
    grouped = at_least_f32(x).reshape(*x.shape[:-1], num_groups, -1)
    y = _standardize(grouped, lambda x: _mean_last_axis(spatial_mean(x)), eps).reshape(x.shape)
    return _scale_and_shift(y, weight, bias).astype(x.dtype)


def _standardize(x: Array, mean: Callable[[Array], Array], eps: float) -> Array:
    centred = x - mean(x)
    return centred * lax.rsqrt(mean(jnp.square(centred)) + eps)


def _mean_last_axis(x: Array) -> Array:
    return sum_last_axis(x) / x.shape[-1]


def _scale_and_shift(y: Array, weight: Array, bias: Array) -> Array:
    weight, bias = (_along_last_axis(at_least_f32(vector), y) for vector in (weight, bias))
    return y * weight + bias


def normalize(x: Array, axis: int = -1) -> Array:
    """Return `x / max(‖x‖₂, 1e-12)` with the norm along `axis`, as PyTorch's `normalize`."""
    x32 = at_least_f32(x)
    squares = jnp.square(x32)
    squares = sum_last_axis(squares) if axis == -1 else squares.sum(axis, keepdims=True)
    return (x32 * lax.rsqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)  # 1e-12, squared


def gelu(x: Array) -> Array:
    """Return `x · Φ(x)`, by erf as PyTorch; `jax.nn.gelu` uses erfc, which compiles more slowly."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


# --- resampling ----------------------------------------------------------------------------------
#
# Sizes may be symbolic (`esrjax.nn.masking`). These ops ignore `masking.valid_region`. Resizing and
# adaptive pooling depend on the size of the whole image, so that the method of a network that uses
# them sets `needs_full_image`.


@counted_op(static=("upscale_factor",))
def pixel_shuffle(x: Array, upscale_factor: int) -> Array:
    """Rearrange `(N, h, w, C·r²)` into `(N, h·r, w·r, C)`, with `r = upscale_factor`.

    Input channels are in PyTorch's order: the output channel varies slowest, then row and column.
    """
    (n, h, w, c), r = x.shape, upscale_factor
    # (n, h, w, C, r, r), the last two for row and column in a block -> (n, h, r, w, r, C)
    blocks = x.reshape(n, h, w, c // r**2, r, r).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, h * r, w * r, c // r**2)


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


def max_pool(x: Array, kernel_size: int, stride: int) -> Array:
    """Return the maximum of every square window that lies inside the image.

    Written as maxima of strided slices, for XLA's CPU backend runs `reduce-window` in scalar code.

    Args:
        x: `(N, h, w, C)`.
        kernel_size: Side of the window.
        stride: Of both axes.
    """
    if native_lowering.value:
        window, strides = (1, kernel_size, kernel_size, 1), (1, stride, stride, 1)
        lowest = np.array(-np.inf, x.dtype)
        return lax.reduce_window(x, lowest, lax.max, window, strides, "VALID")
    for axis in (1, 2):
        length = stride * ((x.shape[axis] - kernel_size) // stride) + 1
        slices = (
            lax.slice_in_dim(x, start, start + length, stride, axis) for start in range(kernel_size)
        )
        x = functools.reduce(jnp.maximum, slices)
    return x


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
def _(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
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
            old, new = dim_as_array(old_len), dim_as_array(new_len)
            ratio = old.astype(jnp.float32) / new.astype(jnp.float32)
            source = (arange(new_len).astype(jnp.float32) * ratio).astype(jnp.int32)
            x = jnp.take(x, jnp.minimum(source, old - 1), axis, mode="clip")
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
        weight = weight.reshape([1] * axis + [-1] + [1] * (3 - axis))
        indices = (jnp.minimum(position, old_len - 1) for position in (low, low + 1))
        low_values, high_values = (jnp.take(x, index, axis, mode="clip") for index in indices)
        x = low_values + weight * (high_values - low_values)
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
