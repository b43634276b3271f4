"""How a convolution is lowered: everywhere to the same numbers, on each platform to what is fast.

Images are `(N, h, w, C)`; kernels are `(kh, kw, in / groups, out)`.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata

Pair = tuple[int, int]
PAIRS = 4  # of an input and an output in a group; more are faster together, with zeros between
Function = TypeVar("Function", bound=Callable[..., Any])


def fast(x: Array, w: Array, *, padding: Pair, stride: int, dilation: int, groups: int) -> Array:
    """Cross-correlation of `x` with `w`, as `native` gives it."""
    as_is = functools.partial(native, padding=padding, stride=stride, dilation=dilation)
    if groups == 1:
        return as_is(x, w)
    if stride == 1 and (w.shape[2] == 1 or w.shape[2] * w.shape[3] <= PAIRS * groups):
        on_cpu: Any = functools.partial(pairwise, padding=padding, dilation=dilation, groups=groups)
    else:
        on_cpu = lambda x, w: as_is(x, block_diagonal(w, groups))  # noqa: E731
    grouped = functools.partial(as_is, groups=groups)
    return lax.platform_dependent(x, w, cpu=on_cpu, default=grouped)


def native(
    x: Array, w: Array, *, padding: Pair, stride: int, dilation: int, groups: int = 1
) -> Array:
    """The one operation of XLA."""
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(stride, stride),
        padding=[(p, p) for p in padding],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def unfused(compiled: Function) -> Function:
    """A jitted function as one that XLA fuses with nothing around it; its own calls lie apart too.

    Sums of many shifts are fast by themselves, but not once XLA's CPU has fused them with the
    concatenation or padding that reads them: then every element asks again where it lies.
    """

    @functools.wraps(compiled)
    def called(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return compiled(*args, **kwargs)

    return called  # pyright: ignore[reportReturnType] # the signature is kept


def pairwise(x: Array, w: Array, *, padding: Pair, dilation: int, groups: int) -> Array:
    """Each input of a group with each output, as shifted products: XLA's CPU has no fast form.

    It has a gradient of its own, and so none in forward mode (`jax.jvp`).
    """
    inner, out = w.shape[2:]
    inputs = x.reshape(*x.shape[:-1], groups, 1, inner)
    pairs = jnp.repeat(inputs, out // groups, axis=-2).reshape(*x.shape[:-1], out * inner)
    kernel = w.swapaxes(2, 3).reshape(*w.shape[:2], 1, out * inner)
    products: Array = _channelwise(padding, dilation, pairs, kernel)
    return products.reshape(*products.shape[:-1], out, inner).sum(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _channelwise(padding: Pair, dilation: int, x: Array, w: Array) -> Array:
    return shifted(x, w, padding=padding, dilation=dilation)


def _forth(padding: Pair, dilation: int, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return shifted(x, w, padding=padding, dilation=dilation), (x, w)


def _back(
    padding: Pair, dilation: int, seen: tuple[Array, Array], slopes: Array
) -> tuple[Array, Array]:
    x, w = seen
    beyond = tuple(dilation * (k - 1) - p for k, p in zip(w.shape[:2], padding, strict=True))
    by_x = shifted(slopes, w[::-1, ::-1], padding=beyond, dilation=dilation)
    by_w = by_lines(x, slopes, kernel=w.shape[:2], padding=padding, dilation=dilation)
    return by_x, by_w.astype(w.dtype)


_channelwise.defvjp(_forth, _back)


@unfused
@functools.partial(jax.jit, static_argnames=("padding", "dilation"))
def shifted(x: Array, w: Array, *, padding: Pair, dilation: int) -> Array:
    """Every channel of `x` with its own of `w (kh, kw, 1, C)`, as a sum of products by taps."""
    taps = w.shape[:2]
    x = _padded(x, padding)
    h, wide = (n - dilation * (k - 1) for n, k in zip(x.shape[1:3], taps, strict=True))
    products = (
        x[:, i * dilation : i * dilation + h, j * dilation : j * dilation + wide]
        * w[i, j][None, None]
        for i, j in np.ndindex(taps)
    )
    return functools.reduce(jnp.add, products)


@unfused
@functools.partial(jax.jit, static_argnames=("kernel", "padding", "dilation"))
def by_lines(x: Array, slopes: Array, *, kernel: Pair, padding: Pair, dilation: int) -> Array:
    """The slope of `shifted` by `w`, of its `slopes` by its output; `(kh, kw, 1, C)`.

    All taps of a line, then of the next: XLA's CPU would read the pictures again for every tap.
    """
    exact = jnp.float32 if slopes.dtype.itemsize < 4 else slopes.dtype
    x, slopes = _padded(x, padding).astype(exact), slopes.astype(exact)
    taps, wide = list(np.ndindex(kernel)), slopes.shape[2]

    def line(sums: list[Array], at: Array) -> tuple[list[Array], None]:
        own = lax.dynamic_slice_in_dim(slopes, at, 1, axis=1)
        seen = lax.dynamic_slice_in_dim(x, at, dilation * (kernel[0] - 1) + 1, axis=1)
        products = (
            own * seen[:, i * dilation][:, None, j * dilation : j * dilation + wide]
            for i, j in taps
        )
        return [a + b.sum((0, 1)) for a, b in zip(sums, products, strict=True)], None

    none = [jnp.zeros((wide, x.shape[-1]), exact)] * len(taps)
    sums, _ = lax.scan(line, none, jnp.arange(slopes.shape[1]))
    return jnp.stack(sums).sum(1).reshape(*kernel, 1, -1)


def _padded(x: Array, padding: Pair) -> Array:
    """With zeros around it; a negative number of them cuts."""
    h, w = padding
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (h, h, 0), (w, w, 0), (0, 0, 0)))


def block_diagonal(w: Array, groups: int) -> Array:
    """A grouped kernel `(kh, kw, in / groups, out)` as a dense one `(kh, kw, in, out)`."""
    kh, kw, wide, out = w.shape
    blocks = w.reshape(kh, kw, 1, wide, groups, out // groups)
    eye = jnp.eye(groups, dtype=w.dtype)[None, None, :, None, :, None]
    return (blocks * eye).reshape(kh, kw, groups * wide, out)
