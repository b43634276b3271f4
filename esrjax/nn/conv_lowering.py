"""Lowerings of the 2-D convolution: the same values on every platform, each in its fastest form.

"The same" is up to rounding: the order of summation differs. Images are `(N, h, w, C)`; kernels are
`(kh, kw, in / groups, out)`. Dense convolutions are XLA's own everywhere; on a CPU they use all
cores by an option of `esrjax.nn.compilation`. Only in the body of a loop (`loop_body`) their
gradients are written out, as XLA's CPU backend is 15 to 30 times as slow at its own there. Grouped
ones are XLA's own (`feature_group_count`) on accelerators only; XLA's CPU backend has no fast code
for them (98 ms for 3x3 depthwise on 80 channels at 168x256, 2.8 ms as shifted products), so that
there they become

- sums of shifted products, where a group has few pairs of an input and an output channel
  (`grouped_conv_as_depthwise`; depthwise convolutions are the case of one pair);
- dense convolutions with a block-diagonal kernel otherwise, which do `groups` times the
  multiply-adds, but in fast code.

The measurements behind these choices are in docs/log.md.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental.xla_metadata import set_xla_metadata

from esrjax.nn.compilation import loop_body, platform_dependent

IntPair = tuple[int, int]
# Up to so many pairs of an input and an output channel in a group, shifted products are faster on a
# CPU than one dense convolution with zeros between the groups (0.17 ms instead of 0.53 ms for nine
# groups of two input channels and one output channel at 128x128).
MAX_PAIRS_PER_GROUP = 4
Function = TypeVar("Function", bound=Callable[..., Any])


def platform_conv2d(
    x: Array, w: Array, *, padding: IntPair, stride: int, dilation: int, groups: int
) -> Array:
    """Return the values of `lax_conv2d`, in the form that is fastest on the platform.

    `platform_dependent` keeps one branch for each platform in the trace, so that an export or a
    test for another platform lowers to that platform's form.

    Args:
        x: Images `(N, h, w, in)`.
        w: Kernel `(kh, kw, in / groups, out)`.
        padding: Zeros above and below, and to the left and right.
        stride: Of both axes.
        dilation: Of both axes.
        groups: Number of groups of channels.
    """
    lax_conv = functools.partial(lax_conv2d, padding=padding, stride=stride, dilation=dilation)
    dense_conv: Any = lax_conv
    if loop_body.value and stride == 1:
        dense_conv = functools.partial(_dense_conv, padding, dilation)
        if groups == 1:
            return platform_dependent(x, w, cpu=dense_conv, default=lax_conv)
    # Returned without `platform_dependent`: in a training step on a CPU, XLA misses its fast
    # form of the weight gradient inside of one, whatever its branches contain.
    if groups == 1:
        return lax_conv(x, w)
    # Pairs per group: in / groups times out / groups. One input channel per group is a depthwise
    # convolution with any number of output channels. Shifted products are written for stride 1.
    if stride == 1 and (w.shape[2] == 1 or w.shape[2] * w.shape[3] <= MAX_PAIRS_PER_GROUP * groups):
        on_cpu: Any = functools.partial(
            grouped_conv_as_depthwise, padding=padding, dilation=dilation, groups=groups
        )
    else:
        on_cpu = lambda x, w: dense_conv(x, block_diagonal(w, groups))  # noqa: E731
    grouped = functools.partial(lax_conv, groups=groups)
    return platform_dependent(x, w, cpu=on_cpu, default=grouped)


def lax_conv2d(
    x: Array, w: Array, *, padding: IntPair, stride: int, dilation: int, groups: int = 1
) -> Array:
    """Return the cross-correlation of `x` with `w` as XLA's one convolution op.

    Args: as `platform_conv2d`.
    """
    return lax.conv_general_dilated(
        x,
        w,
        window_strides=(stride, stride),
        padding=[(p, p) for p in padding],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# The static arguments come first, as custom_vjp hands `nondiff_argnums` to the backward pass.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dense_conv(padding: IntPair, dilation: int, x: Array, w: Array) -> Array:
    """Return a convolution of stride 1 whose gradients are fast in a loop on a CPU.

    As of every `custom_vjp`, there is no forward mode through it.
    """
    return lax_conv2d(x, w, padding=padding, stride=1, dilation=dilation)


def _dense_conv_bwd(
    padding: IntPair, dilation: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, w = residuals
    h_padding, w_padding = _grad_padding(w, padding, dilation)
    flipped = jnp.flip(w, (0, 1)).swapaxes(2, 3)
    dx = lax_conv2d(cotangent, flipped, padding=(h_padding, w_padding), stride=1, dilation=dilation)
    height, width = cotangent.shape[1:3]
    x = _pad(x, padding)
    taps = [
        lax.dot_general(  # one matmul (in, n·h·w) @ (n·h·w, out)
            x[:, i * dilation : i * dilation + height, j * dilation : j * dilation + width],
            cotangent,
            (((0, 1, 2), (0, 1, 2)), ((), ())),
            preferred_element_type=_acc_dtype(cotangent),
        )
        for i, j in np.ndindex(w.shape[:2])
    ]
    return dx, jnp.stack(taps).reshape(w.shape).astype(w.dtype)


_dense_conv.defvjp(lambda *args: (_dense_conv(*args), args[2:]), _dense_conv_bwd)


def _grad_padding(w: Array, padding: IntPair, dilation: int) -> IntPair:
    """Return the padding of the convolution that is the gradient by the images."""
    h, width = (dilation * (k - 1) - p for k, p in zip(w.shape[:2], padding, strict=True))
    return h, width


def no_fusion(jitted: Function) -> Function:
    """Keep XLA from inlining a jitted function, so that it is fused with nothing around it.

    Sums of many shifted products are fast by themselves. Once XLA's CPU backend has fused them with
    the concatenation or padding that reads them, the generated code works out the position of every
    element anew, and is several times as slow. `lax.optimization_barrier` does not prevent that:
    the backend removes it before it fuses. A call that is not inlined does.

    Args:
        jitted: A function that `jax.jit` returned.
    """

    @functools.wraps(jitted)
    def call(*args: Any, **kwargs: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return jitted(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType] # the signature is kept


def grouped_conv_as_depthwise(
    x: Array, w: Array, *, padding: IntPair, dilation: int, groups: int
) -> Array:
    """Return a grouped convolution of stride 1 as a depthwise one of more channels, then summed.

    Every input channel of a group is paired with every output channel of that group; a pair is one
    channel of a depthwise convolution, and the pairs of an output channel are summed. The gradient
    is a `custom_vjp`, faster than the transposed slices and sums that JAX derives by itself, and so
    there is no forward mode through it (`jax.jvp`, `jax.hessian`).

    Args:
        x: Images `(N, h, w, in)`.
        w: Kernel `(kh, kw, in / groups, out)`.
        padding: Zeros above and below, and to the left and right.
        dilation: Of both axes.
        groups: Number of groups of channels.
    """
    group_in, out_channels = w.shape[2:]
    # Pairs are ordered by output channel, then by input channel of its group: in `pairs` (each
    # group's inputs once for every output of the group), in `kernel` and in the sum.
    inputs = x.reshape(*x.shape[:-1], groups, 1, group_in)
    pairs = jnp.repeat(inputs, out_channels // groups, axis=-2).reshape(
        *x.shape[:-1], out_channels * group_in
    )
    kernel = w.swapaxes(2, 3).reshape(*w.shape[:2], 1, out_channels * group_in)
    products: Array = _depthwise_conv(padding, dilation, pairs, kernel)
    return products.reshape(*products.shape[:-1], out_channels, group_in).sum(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _depthwise_conv(padding: IntPair, dilation: int, x: Array, w: Array) -> Array:
    return depthwise_shift_add(x, w, padding=padding, dilation=dilation)


def _depthwise_conv_bwd(
    padding: IntPair, dilation: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    # JAX's own gradient would save a shifted copy of the images for every tap; here only x and w.
    x, w = residuals
    # The gradient by x is the convolution of the cotangent with the flipped kernel, "full" padding.
    grad_padding = _grad_padding(w, padding, dilation)
    dx = depthwise_shift_add(cotangent, w[::-1, ::-1], padding=grad_padding, dilation=dilation)
    dw = depthwise_kernel_grad(
        x, cotangent, kernel_size=w.shape[:2], padding=padding, dilation=dilation
    )
    return dx, dw.astype(w.dtype)


_depthwise_conv.defvjp(lambda *args: (_depthwise_conv(*args), args[2:]), _depthwise_conv_bwd)


@no_fusion
@functools.partial(jax.jit, static_argnames=("padding", "dilation"))
def depthwise_shift_add(x: Array, w: Array, *, padding: IntPair, dilation: int) -> Array:
    """Return a depthwise convolution as a sum over the taps of the shifted images times weights.

    Args:
        x: Images `(N, h, w, C)`.
        w: Kernel `(kh, kw, 1, C)`.
        padding: Zeros above and below, and to the left and right; negative numbers crop.
        dilation: Of both axes.
    """
    kernel_size = w.shape[:2]
    x = _pad(x, padding)
    height, width = (n - dilation * (k - 1) for n, k in zip(x.shape[1:3], kernel_size, strict=True))
    products = (
        x[:, i * dilation : i * dilation + height, j * dilation : j * dilation + width]
        * w[i, j][None, None]
        for i, j in np.ndindex(kernel_size)
    )
    return functools.reduce(jnp.add, products)


@no_fusion
@functools.partial(jax.jit, static_argnames=("kernel_size", "padding", "dilation"))
def depthwise_kernel_grad(
    x: Array, cotangent: Array, *, kernel_size: IntPair, padding: IntPair, dilation: int
) -> Array:
    """Return the gradient of `depthwise_shift_add` by its kernel, `(kh, kw, 1, C)`.

    A scan over image rows computes all taps of a row before the next row: written as one sum for
    each tap, XLA's CPU backend reads the whole images from memory again for every tap. (The whole
    backward pass: 1.8 ms instead of 14.0 ms for 48 channels, 16 images of 32x32.)

    Args:
        x: Images `(N, h, w, C)`, the input of the convolution.
        cotangent: Gradient by its output, `(N, h', w', C)`. Sums are in float32 at least.
        kernel_size: `(kh, kw)`.
        padding: As of the convolution.
        dilation: As of the convolution.
    """
    acc_dtype = _acc_dtype(cotangent)
    x, cotangent = _pad(x, padding).astype(acc_dtype), cotangent.astype(acc_dtype)
    taps, width = list(np.ndindex(kernel_size)), cotangent.shape[2]

    def add_row(sums: list[Array], row: Array) -> tuple[list[Array], None]:
        cotangent_row = lax.dynamic_slice_in_dim(cotangent, row, 1, axis=1)
        x_rows = lax.dynamic_slice_in_dim(x, row, dilation * (kernel_size[0] - 1) + 1, axis=1)
        products = (
            cotangent_row * x_rows[:, i * dilation][:, None, j * dilation : j * dilation + width]
            for i, j in taps
        )
        return [a + b.sum((0, 1)) for a, b in zip(sums, products, strict=True)], None

    # One sum (w', C) per tap: element-wise along a row, reduced over its columns once at the end.
    zeros = [jnp.zeros((width, x.shape[-1]), acc_dtype)] * len(taps)
    sums, _ = lax.scan(add_row, zeros, jnp.arange(cotangent.shape[1]))
    return jnp.stack(sums).sum(1).reshape(*kernel_size, 1, -1)


def _acc_dtype(cotangent: Array) -> Any:
    """Return the dtype of sums: float32 at least."""
    return jnp.float32 if cotangent.dtype.itemsize < 4 else cotangent.dtype


def _pad(x: Array, padding: IntPair) -> Array:
    """Pad height and width with zeros; a negative number crops (which `jnp.pad` refuses)."""
    h, w = padding
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (h, h, 0), (w, w, 0), (0, 0, 0)))


def block_diagonal(w: Array, groups: int) -> Array:
    """Return a grouped kernel `(kh, kw, in / groups, out)` as a dense one `(kh, kw, in, out)`."""
    kh, kw, group_in, out_channels = w.shape
    blocks = w.reshape(kh, kw, 1, group_in, groups, out_channels // groups)
    eye = jnp.eye(groups, dtype=w.dtype)[None, None, :, None, :, None]
    return (blocks * eye).reshape(kh, kw, groups * group_in, out_channels)
