"""The words of networks: functions that trace under their own names.

`esrjax.network.cost` counts them by name, whatever they are lowered to. Images are
`(N, h, w, C)`; kernels are `(kh, kw, in / groups, out)`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from esrjax.network import convolution, reduction

PREFIX = "word_"
# True: a word is lowered to the one operation that it says, and not to what a platform is fastest
# at; for compilers that choose for themselves. A user context, so part of every jit cache key.
plain = cast("Any", jax.make_user_context(False))
Function = TypeVar("Function", bound=Callable[..., Any])


def word(*, static: tuple[str, ...] = ()) -> Callable[[Function], Function]:
    """Make a word of a function; `static` names its arguments that are not arrays."""

    def name(function: Function) -> Function:
        @functools.wraps(function)
        def named(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        named.__name__ = named.__qualname__ = PREFIX + function.__name__
        return jax.jit(named, static_argnames=static)  # pyright: ignore[reportReturnType] # jit keeps the signature

    return name


@word(static=("padding", "stride", "dilation", "groups"))
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
    """Cross-correlation of `x (N, h, w, in)` with `w (kh, kw, in / groups, out)`, plus `b`."""
    convolve = convolution.native if plain.value else convolution.fast
    y = convolve(x, w, padding=padding, stride=stride, dilation=dilation, groups=groups)
    return y if b is None else y + b[None, None, None, :]


@word(static=("padding", "groups"))
def conv1d(
    x: Array, w: Array, b: Array | None = None, *, padding: int = 0, groups: int = 1
) -> Array:
    """Cross-correlation of tokens `x (N, L, in)` with `w (k, in / groups, out)`, plus `b`."""
    return conv2d(x[:, None], w[None], b, padding=(0, padding), groups=groups)[:, 0]


@word()
def linear(x: Array, w: Array, b: Array | None = None) -> Array:
    """`x (..., in)` times `w (in, out)`, plus `b (out,)`."""
    y = x @ w
    return y if b is None else y + b.reshape((1,) * (y.ndim - 1) + (-1,))


@word()
def matmul(x: Array, y: Array) -> Array:
    """Batched product `(..., n, k), (..., k, m) -> (..., n, m)`."""
    return x @ y


@word(static=("equation",))
def einsum(equation: str, x: Array, y: Array) -> Array:
    """The product that the equation says; where the original speaks `matmul`, so should ours."""
    return jnp.einsum(equation, x, y)


@word(static=("eps",))
def layer_norm(x: Array, scale: Array, shift: Array, eps: float = 1e-5) -> Array:
    """`x (..., C)` with zero mean and unit variance over its channels, scaled and shifted."""
    wide, scale, shift = map(single, (x, scale, shift))
    mean = total(wide) / x.shape[-1]
    variance = total(jnp.square(wide - mean)) / x.shape[-1]
    lead = (1,) * (x.ndim - 1) + (-1,)
    y = (wide - mean) * lax.rsqrt(variance + eps) * scale.reshape(lead) + shift.reshape(lead)
    return y.astype(x.dtype)


@word(static=("groups", "eps"))
def group_norm(
    x: Array, scale: Array, shift: Array, *, groups: int = 1, eps: float = 1e-5
) -> Array:
    """`x (N, h, w, C)`, every group of channels with zero mean, unit variance over the picture."""
    scale, shift = single(scale), single(shift)
    grouped = single(x).reshape(*x.shape[:-1], groups, -1)
    mean = total(picture_mean(grouped)) / grouped.shape[-1]
    variance = total(picture_mean(jnp.square(grouped - mean))) / grouped.shape[-1]
    y = ((grouped - mean) * lax.rsqrt(variance + eps)).reshape(x.shape)
    return (y * scale[None, None, None, :] + shift[None, None, None, :]).astype(x.dtype)


def normalize(x: Array, axis: int = -1) -> Array:
    """`x` divided by its 2-norm along `axis`, or by 1e-12 where that is larger."""
    wide = single(x)
    square = jnp.square(wide)
    square = total(square) if axis == -1 else square.sum(axis, keepdims=True)
    return (wide * lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)


def softmax(x: Array, axis: int = -1) -> Array:
    """The shares of `x` along `axis`, their exponentials and sum in float32 at least."""
    wide = single(x)
    fast = axis == -1 and not plain.value
    return (reduction.softmax(wide) if fast else jax.nn.softmax(wide, axis)).astype(x.dtype)


def attend(logits: Array, v: Array) -> Array:
    """`softmax(logits) v`: `(..., L, K), (..., K, d) -> (..., L, d)`."""
    if plain.value:
        return _by_shares(logits, v)
    return lax.platform_dependent(logits, v, cpu=_divided_after, default=_by_shares)


def _by_shares(logits: Array, v: Array) -> Array:
    return matmul(jax.nn.softmax(single(logits)).astype(v.dtype), v)


def _divided_after(logits: Array, v: Array) -> Array:
    e, sums = reduction.rising(single(logits))
    return (single(matmul(e.astype(v.dtype), v)) / sums).astype(v.dtype)


def total(x: Array) -> Array:
    """The sum along the last axis: `(..., n) -> (..., 1)`."""
    return x.sum(-1, keepdims=True) if plain.value else reduction.total(x)


def picture_mean(x: Array) -> Array:
    """Over the pixels: `(N, h, w, ...) -> (N, 1, 1, ...)`."""
    return x.mean((1, 2), keepdims=True) if plain.value else reduction.picture_mean(x)


def picture_variance(x: Array) -> Array:
    """Over the pixels, unbiased: `(N, h, w, ...) -> (N, 1, 1, ...)`."""
    if plain.value:
        return x.var((1, 2), keepdims=True, ddof=1)
    pixels = x.shape[1] * x.shape[2]
    spread = picture_mean(jnp.square(x - picture_mean(x)))
    return spread * (pixels / (pixels - 1))


def single(x: Array) -> Array:
    """`x` in float32 where it is narrower: in what statistics, exponentials and states are made."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def gelu(x: Array) -> Array:
    """`x·Φ(x)`, by erf as in PyTorch; `jax.nn.gelu` goes by erfc, slower to compile."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


@word(static=("r",))
def pixel_shuffle(x: Array, r: int) -> Array:
    """`(N, h, w, C·r²) -> (N, h·r, w·r, C)` in PyTorch's order: C slowest, then row, column."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, c // r**2, r, r).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, h * r, w * r, c // r**2)
