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
    native = functools.partial(
        _native_conv2d, padding=padding, stride=stride, dilation=dilation, groups=groups
    )
    if groups == 1 or plain.value:
        y = native(x, w)
    elif stride == 1 and w.shape[2] == 1:
        shifted = functools.partial(_shifted_conv2d, padding=padding, dilation=dilation)
        y = lax.platform_dependent(x, w, cpu=shifted, default=native)
    else:
        dense = functools.partial(_native_conv2d, padding=padding, stride=stride, dilation=dilation)
        y = lax.platform_dependent(
            x, w, cpu=lambda x, w: dense(x, block_diagonal(w, groups)), default=native
        )
    return y if b is None else y + b[None, None, None, :]


@word(static=("padding", "groups"))
def conv1d(
    x: Array, w: Array, b: Array | None = None, *, padding: int = 0, groups: int = 1
) -> Array:
    """Cross-correlation of tokens `x (N, L, in)` with `w (k, in / groups, out)`, plus `b`."""
    return conv2d(x[:, None], w[None], b, padding=(0, padding), groups=groups)[:, 0]


def _native_conv2d(
    x: Array, w: Array, *, padding: tuple[int, int], stride: int, dilation: int, groups: int = 1
) -> Array:
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(stride, stride),
        padding=[(p, p) for p in padding],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _shifted_conv2d(x: Array, w: Array, *, padding: tuple[int, int], dilation: int) -> Array:
    """One input channel per group, as shifted products: XLA's CPU has no fast grouped form."""
    kh, kw, _, out = w.shape
    if out != x.shape[-1]:
        x = jnp.repeat(x, out // x.shape[-1], axis=-1)
    x = jnp.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
    h, wide = x.shape[1] - dilation * (kh - 1), x.shape[2] - dilation * (kw - 1)
    taps = (
        x[:, i * dilation : i * dilation + h, j * dilation : j * dilation + wide]
        * w[i, j][None, None]
        for i in range(kh)
        for j in range(kw)
    )
    return functools.reduce(jnp.add, taps)


def block_diagonal(w: Array, groups: int) -> Array:
    """A grouped kernel `(kh, kw, in / groups, out)` as a dense one `(kh, kw, in, out)`."""
    kh, kw, wide, out = w.shape
    blocks = w.reshape(kh, kw, 1, wide, groups, out // groups)
    eye = jnp.eye(groups, dtype=w.dtype)[None, None, :, None, :, None]
    return (blocks * eye).reshape(kh, kw, groups * wide, out)


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
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    lead = (1,) * (x.ndim - 1) + (-1,)
    return (x - mean) * lax.rsqrt(variance + eps) * scale.reshape(lead) + shift.reshape(lead)


@word(static=("groups", "eps"))
def group_norm(
    x: Array, scale: Array, shift: Array, *, groups: int = 1, eps: float = 1e-5
) -> Array:
    """`x (N, h, w, C)`, every group of channels with zero mean, unit variance over the picture."""
    grouped = x.reshape(*x.shape[:-1], groups, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
    x = ((grouped - mean) * lax.rsqrt(variance + eps)).reshape(x.shape)
    return x * scale[None, None, None, :] + shift[None, None, None, :]


def normalize(x: Array, axis: int = -1) -> Array:
    """`x` divided by its 2-norm along `axis`, or by 1e-12 where that is larger."""
    square = jnp.square(x).sum(axis, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(square, 1e-24))


def gelu(x: Array) -> Array:
    """`x·Φ(x)`, by erf as in PyTorch; `jax.nn.gelu` goes by erfc, slower to compile."""
    return 0.5 * x * (1 + lax.erf(x * math.sqrt(0.5)))


@word(static=("r",))
def pixel_shuffle(x: Array, r: int) -> Array:
    """`(N, h, w, C·r²) -> (N, h·r, w·r, C)` in PyTorch's order: C slowest, then row, column."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, c // r**2, r, r).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, h * r, w * r, c // r**2)
