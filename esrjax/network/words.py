"""Functional ops of networks, as PyTorch's `torch.nn.functional`.

Most are traced under their own names (`counted_op`), by which `esrjax.network.work` counts them
whatever they are lowered to. Images are `(N, h, w, C)`; kernels are `(kh, kw, in / groups, out)`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from esrjax.network import convolution, reduction

OP_PREFIX = "op_"  # of the traced names of counted ops
# True: an op is lowered to the one XLA op of its name and not to the form that is fastest on a
# platform, for exports and other compilers, which have fast forms of their own. A JAX user context,
# so that it is part of every jit cache key.
native_lowering = cast("Any", jax.make_user_context(False))
Function = TypeVar("Function", bound=Callable[..., Any])


def counted_op(*, static: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Return a decorator that makes an op of a function: a jitted function with a traced name.

    In a trace, the call is one `jit` equation with the name `OP_PREFIX + function.__name__`. If
    `esrjax.network.work.MAC_RULES` has a rule of that name, the op is counted by that rule, else
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

    How it is lowered is decided in `esrjax.network.convolution`.

    Args:
        x: Images `(N, h, w, in)`.
        w: Kernel `(kh, kw, in / groups, out)`.
        b: Bias `(out,)`.
        padding: Zeros above and below, and to the left and right.
        stride: Of both axes.
        dilation: Of both axes.
        groups: Number of groups of channels.
    """
    lowering = convolution.lax_conv2d if native_lowering.value else convolution.platform_conv2d
    y = lowering(x, w, padding=padding, stride=stride, dilation=dilation, groups=groups)
    return y if b is None else y + b[None, None, None, :]


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
    return y if b is None else y + b.reshape((1,) * (y.ndim - 1) + (-1,))


@counted_op()
def matmul(x: Array, y: Array) -> Array:
    """Return the batched matmul `(..., n, k), (..., k, m) -> (..., n, m)`."""
    return x @ y


@counted_op(static=("equation",))
def einsum(equation: str, x: Array, y: Array) -> Array:
    """Return `jnp.einsum(equation, x, y)`.

    Use it where the official code has an einsum and `matmul` where that has a matmul: fvcore counts
    the two differently (`esrjax.network.work.FVCORE_RULES`).
    """
    return jnp.einsum(equation, x, y)


@counted_op(static=("eps",))
def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Return the layer normalisation of `x (..., C)` over its channels, in float32 at least.

    Args:
        x: `(..., C)`.
        weight: Scale `(C,)`.
        bias: Shift `(C,)`.
        eps: Added to the variance.
    """
    x32, weight, bias = map(at_least_f32, (x, weight, bias))
    mean = sum_last_axis(x32) / x.shape[-1]
    variance = sum_last_axis(jnp.square(x32 - mean)) / x.shape[-1]
    broadcast_shape = (1,) * (x.ndim - 1) + (-1,)
    y = (x32 - mean) * lax.rsqrt(variance + eps) * weight.reshape(broadcast_shape) + bias.reshape(
        broadcast_shape
    )
    return y.astype(x.dtype)


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
    weight, bias = at_least_f32(weight), at_least_f32(bias)
    grouped = at_least_f32(x).reshape(*x.shape[:-1], num_groups, -1)
    mean = sum_last_axis(spatial_mean(grouped)) / grouped.shape[-1]
    variance = sum_last_axis(spatial_mean(jnp.square(grouped - mean))) / grouped.shape[-1]
    y = ((grouped - mean) * lax.rsqrt(variance + eps)).reshape(x.shape)
    return (y * weight[None, None, None, :] + bias[None, None, None, :]).astype(x.dtype)


def normalize(x: Array, axis: int = -1) -> Array:
    """Return `x / max(‖x‖₂, 1e-12)` with the norm along `axis`, as PyTorch's `normalize`."""
    x32 = at_least_f32(x)
    squares = jnp.square(x32)
    squares = sum_last_axis(squares) if axis == -1 else squares.sum(axis, keepdims=True)
    return (x32 * lax.rsqrt(jnp.maximum(squares, 1e-24))).astype(x.dtype)  # 1e-12, squared


def softmax(x: Array, axis: int = -1) -> Array:
    """Return the softmax of `x` along `axis`, computed in float32 at least."""
    x32 = at_least_f32(x)
    use_reduction = axis == -1 and not native_lowering.value
    return (reduction.softmax(x32) if use_reduction else jax.nn.softmax(x32, axis)).astype(x.dtype)


def attention_from_logits(logits: Array, v: Array) -> Array:
    """Return `softmax(logits) v`: `(..., L, K), (..., K, d) -> (..., L, d)`.

    On a CPU the matmul comes before the division by the softmax's sum: then `L·d` elements are
    divided and not `L·K`, and the normalised `(L, K)` array is never written.
    """
    if native_lowering.value:
        return _softmax_then_matmul(logits, v)
    return lax.platform_dependent(
        logits, v, cpu=_matmul_then_normalize, default=_softmax_then_matmul
    )


def _softmax_then_matmul(logits: Array, v: Array) -> Array:
    return matmul(jax.nn.softmax(at_least_f32(logits)).astype(v.dtype), v)


def _matmul_then_normalize(logits: Array, v: Array) -> Array:
    exps, sums = reduction.exp_sub_max(at_least_f32(logits))
    return (at_least_f32(matmul(exps.astype(v.dtype), v)) / sums).astype(v.dtype)


def sum_last_axis(x: Array) -> Array:
    """Return the sum along the last axis: `(..., n) -> (..., 1)`."""
    return x.sum(-1, keepdims=True) if native_lowering.value else reduction.sum_last_axis(x)


def spatial_mean(x: Array) -> Array:
    """Return the mean over pixels: `(N, h, w, ...) -> (N, 1, 1, ...)`."""
    return x.mean((1, 2), keepdims=True) if native_lowering.value else reduction.spatial_mean(x)


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


def gelu(x: Array) -> Array:
    """Return `x · Φ(x)`, by erf as PyTorch; `jax.nn.gelu` uses erfc, which compiles more slowly."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


@counted_op(static=("upscale_factor",))
def pixel_shuffle(x: Array, upscale_factor: int) -> Array:
    """Rearrange `(N, h, w, C·r²)` into `(N, h·r, w·r, C)`, with `r = upscale_factor`.

    Input channels are in PyTorch's order: the output channel varies slowest, then row and column.
    """
    n, h, w, c = x.shape
    # (n, h, w, C, r, r), the last two for row and column in a block -> (n, h, r, w, r, C)
    x = x.reshape(n, h, w, c // upscale_factor**2, upscale_factor, upscale_factor).transpose(
        0, 1, 4, 2, 5, 3
    )
    return x.reshape(n, h * upscale_factor, w * upscale_factor, c // upscale_factor**2)
