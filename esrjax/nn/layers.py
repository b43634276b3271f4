"""Layers of networks, with PyTorch's parameter names, defaults and initialisation.

Images are `(N, h, w, C)`; kernels are `(kh, kw, in / groups, out)`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax.nn.functional import conv2d, group_norm, layer_norm, linear, pixel_shuffle
from esrjax.nn.masking import mask_invalid


def uniform_init(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    """Return values drawn from U(−1/√fan_in, 1/√fan_in), in float32.

    PyTorch's default for weights and biases of `Conv2d` and `Linear`.

    Args:
        rngs: A key is taken from its stream `params`.
        shape: Shape of the result.
        fan_in: Number of inputs of one output.
    """
    bound = 1 / math.sqrt(fan_in)
    return _slice_to(
        jax.random.uniform(_next_key(rngs), _bucketed_length(shape), jnp.float32, -bound, bound),
        shape,
    )


def normal_init(rngs: nnx.Rngs, shape: tuple[int, ...], stddev: float) -> Array:
    """Return values drawn from N(0, stddev²), in float32.

    In place of PyTorch's `trunc_normal_` as networks call it (`std=0.02`, cut off at ±2, which is
    100 standard deviations): the truncation never takes effect.

    Args:
        rngs: A key is taken from its stream `params`.
        shape: Shape of the result.
        stddev: Standard deviation.
    """
    return _slice_to(stddev * jax.random.normal(_next_key(rngs), _bucketed_length(shape)), shape)


def _next_key(rngs: nnx.Rngs) -> Array:
    """Return a new key, a constant even while tracing: flax searches the whole trace otherwise."""
    with jax.ensure_compile_time_eval():
        return rngs.params()


def _bucketed_length(shape: tuple[int, ...]) -> tuple[int]:
    """Return the element count rounded up to a power of two: every length is compiled anew."""
    return (1 << max(12, (math.prod(shape) - 1).bit_length()),)


def _slice_to(samples: Array, shape: tuple[int, ...]) -> Array:
    return lax.slice(samples, (0,), (math.prod(shape),)).reshape(shape)


def param(value: Array, torch_axes: tuple[int, ...] | None = None) -> nnx.Param[Array]:
    """Return a trainable parameter.

    Args:
        value: Initial value.
        torch_axes: Axes by which `value.transpose(torch_axes)` has PyTorch's layout; None where the
            layouts agree.
    """
    # `jnp.full(c, 0.1)` is weakly typed. The first training steps would make some of the state
    # strongly typed, and every change of a type compiles the step again.
    return nnx.Param(jnp.asarray(value, value.dtype), torch_axes=torch_axes)


class Conv2d(nnx.Module):
    """2-D convolution with zero padding: `(N, h, w, in) -> (N, h', w', out)`.

    Within `canvas.valid_region`, pixels that do not exist act as zeros.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Side of the kernel, or `(kh, kw)`.
        rngs: Source of the initial weights.
        padding: Zeros on every side, or `(vertical, horizontal)`. The default keeps the size of the
            image (of an odd kernel, at stride 1); PyTorch's default is 0.
        stride: Of both axes.
        dilation: Of both axes.
        groups: Number of groups of channels.
        bias: Whether a bias is added.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        rngs: nnx.Rngs,
        padding: int | tuple[int, int] | None = None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        kh, kw = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if padding is None:
            padding = (dilation * (kh - 1) // 2, dilation * (kw - 1) // 2)
        self.padding = (padding, padding) if isinstance(padding, int) else padding
        self.stride, self.dilation, self.groups = stride, dilation, groups
        fan_in = in_channels // groups * kh * kw
        kernel_shape = (kh, kw, in_channels // groups, out_channels)
        self.weight = param(uniform_init(rngs, kernel_shape, fan_in), torch_axes=(3, 2, 0, 1))
        self.bias: Any = param(uniform_init(rngs, (out_channels,), fan_in)) if bias else None

    def effective_weight(self) -> Array:
        """Return the kernel that the layer convolves with, `(kh, kw, in / groups, out)`.

        Subclasses that store it in another form override this (`lora.LoRAConv2d`).
        """
        return self.weight[...]

    def __call__(self, x: Array) -> Array:
        return conv2d(
            mask_invalid(x) if any(self.padding) else x,
            self.effective_weight(),
            None if self.bias is None else self.bias[...],
            padding=self.padding,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
        )


class Linear(nnx.Module):
    """Affine map of the last axis: `(..., in) -> (..., out)`.

    Args:
        in_features: Length of the last axis of the input.
        out_features: Length of the last axis of the output.
        rngs: Source of the initial weights.
        bias: Whether a bias is added.
    """

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs, bias: bool = True):
        self.weight = param(
            uniform_init(rngs, (in_features, out_features), in_features), torch_axes=(1, 0)
        )
        self.bias: Any = param(uniform_init(rngs, (out_features,), in_features)) if bias else None

    def __call__(self, x: Array) -> Array:
        return linear(x, self.weight[...], None if self.bias is None else self.bias[...])


class LayerNorm(nnx.Module):
    """Layer normalisation over the channels of every pixel or token: `(..., C) -> (..., C)`.

    Args:
        num_channels: Length of the last axis.
        eps: Added to the variance.
    """

    def __init__(self, num_channels: int, *, eps: float = 1e-5):
        self.weight = param(jnp.ones(num_channels))
        self.bias = param(jnp.zeros(num_channels))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        return layer_norm(x, self.weight[...], self.bias[...], eps=self.eps)


class GroupNorm(nnx.Module):
    """Normalisation of groups of channels over the whole image: `(N, h, w, C) -> (N, h, w, C)`.

    Args:
        num_groups: Number of groups of channels.
        num_channels: Number of channels.
        eps: Added to the variance.
    """

    def __init__(self, num_groups: int, num_channels: int, *, eps: float = 1e-5):
        self.weight = param(jnp.ones(num_channels))
        self.bias = param(jnp.zeros(num_channels))
        self.num_groups, self.eps = num_groups, eps

    def __call__(self, x: Array) -> Array:
        return group_norm(
            x, self.weight[...], self.bias[...], num_groups=self.num_groups, eps=self.eps
        )


class PReLU(nnx.Module):
    """`max(x, 0) + a · min(x, 0)` with a learned `a`.

    Args:
        num_parameters: 1 for one `a` of all channels, or the number of channels.
    """

    def __init__(self, num_parameters: int = 1):
        self.weight = param(jnp.full(num_parameters, 0.25))

    def __call__(self, x: Array) -> Array:
        negative_slope = self.weight[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return jnp.where(x > 0, x, negative_slope * x)


class PixelShuffle(nnx.Module):
    """`(N, h, w, C·r²) -> (N, h·r, w·r, C)`, in PyTorch's order of channels.

    Args:
        upscale_factor: The factor `r`.
    """

    def __init__(self, upscale_factor: int):
        self.upscale_factor = upscale_factor

    def __call__(self, x: Array) -> Array:
        return pixel_shuffle(x, self.upscale_factor)


class Sequential(nnx.List[Any]):
    """Layers applied one after the other, named by their positions as in PyTorch."""

    def __call__(self, x: Array) -> Array:
        for layer in self:
            x = layer(x)
        return x
