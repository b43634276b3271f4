"""How sums and maxima are lowered: everywhere to the same numbers, on a CPU to what is fast there.

XLA's CPU sums more than 32 numbers in two steps, of which the first (`reduce-window`) goes number
by number, as its maxima do.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

FEW = 32  # numbers that XLA's CPU sums in one step
LANES = 8  # numbers whose maximum is taken one by one
SUM = "sum_by_product"


@jax.jit
def total(x: Array) -> Array:
    """The sum along the last axis: `(..., n) -> (..., 1)`."""
    if x.shape[-1] <= FEW:
        return _sum(x)
    return lax.platform_dependent(x, cpu=sum_by_product, default=_sum)


def picture_mean(x: Array) -> Array:
    """Over the pixels, line by line and then of the lines: `(N, h, w, ...) -> (N, 1, 1, ...)`."""
    return x.mean(2, keepdims=True).mean(1, keepdims=True)


@jax.jit
def softmax(x: Array) -> Array:
    """The shares of `x` along the last axis."""
    return lax.platform_dependent(x, cpu=_softmax, default=jax.nn.softmax)


@jax.jit
def sum_by_product(x: Array) -> Array:
    """The sum as a product with ones, which `esrjax.network.cost` knows by this name for a sum."""
    ones = jnp.ones(x.shape[-1], x.dtype)
    return lax.dot_general(x, ones, (((x.ndim - 1,), (0,)), ((), ())))[..., None]


def rising(x: Array) -> tuple[Array, Array]:
    """Exponentials along the last axis and their sum, both over that of the largest.

    On a CPU; `(..., n) -> (..., n), (..., 1)`.
    """
    e = jnp.exp(x - lax.stop_gradient(_largest(x)))
    return e, sum_by_product(e)


def _sum(x: Array) -> Array:
    return x.sum(-1, keepdims=True)


def _largest(x: Array) -> Array:
    """The maximum along the last axis, of halves that overlap where they cannot be equal."""
    while (n := x.shape[-1]) > LANES:
        half = (n + 1) // 2
        x = jnp.maximum(x[..., :half], x[..., n - half :])
    return x.max(-1, keepdims=True)


@jax.custom_jvp
def _softmax(x: Array) -> Array:
    e, sums = rising(x)
    return e / sums


@_softmax.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    y, (tangent,) = _softmax(*primals), tangents
    return y, y * (tangent - total(y * tangent))
