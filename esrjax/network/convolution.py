"""How a convolution is lowered: everywhere to the same numbers, on each platform to what is fast.

Images are `(N, h, w, C)`; kernels are `(kh, kw, in / groups, out)`.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata

Pair = tuple[int, int]
Function = TypeVar("Function", bound=Callable[..., Any])


def fast(x: Array, w: Array, *, padding: Pair, stride: int, dilation: int, groups: int) -> Array:
    """Cross-correlation of `x` with `w`, as `native` gives it."""
    as_is = functools.partial(native, padding=padding, stride=stride, dilation=dilation)
    grouped = functools.partial(as_is, groups=groups)
    if groups == 1:
        return as_is(x, w) if w.shape[-1] == rounded(w.shape[-1]) else _dense(as_is, x, w)
    if stride == 1 and w.shape[2] == 1:
        on_cpu: Any = functools.partial(shifted, padding=padding, dilation=dilation)
    else:
        on_cpu = lambda x, w: as_is(x, block_diagonal(w, groups))  # noqa: E731
    return lax.platform_dependent(x, w, cpu=on_cpu, default=grouped)


def _dense(conv: Callable[[Array, Array], Array], x: Array, w: Array) -> Array:
    """Where a gradient is asked for, no choice of platform: XLA's CPU is slow behind one."""
    chosen: Any = functools.partial(lax.platform_dependent, cpu=widened(conv), default=conv)
    return undifferentiated(chosen, conv)(x, w)


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


def rounded(out: int) -> int:
    """The next number of output channels that the dense convolution of XLA's CPU is fast at.

    Measured for 3x3; others gain less, but do not lose.
    """
    fours = -(-out // 4) * 4
    return fours + 4 if fours % 16 == 12 else fours


def widened(conv: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """`conv` with that number of output channels; those beyond its own are cut off."""

    def wide(x: Array, w: Array) -> Array:
        out = w.shape[-1]
        beyond = (0, rounded(out) - out)
        return conv(x, jnp.pad(w, ((0, 0), (0, 0), (0, 0), beyond)))[..., :out]

    return wide


def undifferentiated(fast: Callable[..., Array], differentiated: Callable[..., Array]) -> Any:
    """`fast`, but `differentiated`, which gives the same, where a gradient is asked for."""
    call = jax.custom_jvp(fast)
    call.defjvp(lambda primals, tangents: jax.jvp(differentiated, primals, tangents))
    return call


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


@unfused
@functools.partial(jax.jit, static_argnames=("padding", "dilation"))
def shifted(x: Array, w: Array, *, padding: Pair, dilation: int) -> Array:
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
