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

from esrjax.network import convolution

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
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
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
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
    y = ((grouped - mean) * lax.rsqrt(variance + eps)).reshape(x.shape)
    return (y * scale[None, None, None, :] + shift[None, None, None, :]).astype(x.dtype)


def normalize(x: Array, axis: int = -1) -> Array:
    """`x` divided by its 2-norm along `axis`, or by 1e-12 where that is larger."""
    wide = single(x)
    square = jnp.square(wide).sum(axis, keepdims=True)
    return (wide * lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)


def softmax(x: Array, axis: int = -1) -> Array:
    """The shares of `x` along `axis`, their exponentials and sum in float32 at least."""
    return jax.nn.softmax(single(x), axis).astype(x.dtype)


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
