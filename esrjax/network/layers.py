"""The layers of networks, with PyTorch's names, shapes of kernels and initialisation."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax.network.canvas import zero_outside
from esrjax.network.words import conv2d, group_norm, layer_norm, linear, pixel_shuffle


def uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    """PyTorch's default for weights and biases of convolutions and linears: ±1/√fan_in."""
    bound = 1 / math.sqrt(fan_in)
    return _cut(jax.random.uniform(_key(rngs), _length(shape), jnp.float32, -bound, bound), shape)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], deviation: float) -> Array:
    """Normal around 0; PyTorch's truncated one is cut off at 100 deviations, which is nowhere."""
    return _cut(deviation * jax.random.normal(_key(rngs), _length(shape)), shape)


def _key(rngs: nnx.Rngs) -> Array:
    """A fresh key, known even while tracing: flax would search the whole trace for each new one."""
    with jax.ensure_compile_time_eval():
        return rngs.params()


def _length(shape: tuple[int, ...]) -> tuple[int]:
    """At least as many numbers: one of few lengths, for each compiles a program of its own."""
    return (1 << max(12, (math.prod(shape) - 1).bit_length()),)


def _cut(drawn: Array, shape: tuple[int, ...]) -> Array:
    return lax.slice(drawn, (0,), (math.prod(shape),)).reshape(shape)


def parameter(value: Array, torch_axes: tuple[int, ...] | None = None) -> nnx.Param[Array]:
    """A trainable leaf; `torch_axes` transposes it into PyTorch's layout."""
    # Not weakly typed, as `jnp.full(c, 0.1)` is: the first steps of a training would each make some
    # of its state strong, and the next be compiled again.
    return nnx.Param(jnp.asarray(value, value.dtype), torch_axes=torch_axes)


class Conv2d(nnx.Module):
    """A zero-padded convolution of `kernel`, a side or `(kh, kw)`; its size stays the same."""

    def __init__(
        self,
        wide: int,
        out: int,
        kernel: int | tuple[int, int] = 3,
        *,
        rngs: nnx.Rngs,
        padding: int | tuple[int, int] | None = None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ):
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        if padding is None:
            padding = (dilation * (kh - 1) // 2, dilation * (kw - 1) // 2)
        self.padding = (padding, padding) if isinstance(padding, int) else padding
        self.stride, self.dilation, self.groups = stride, dilation, groups
        fan_in = wide // groups * kh * kw
        kernel_shape = (kh, kw, wide // groups, out)
        self.weight = parameter(uniform(rngs, kernel_shape, fan_in), torch_axes=(3, 2, 0, 1))
        self.bias: Any = parameter(uniform(rngs, (out,), fan_in)) if bias else None

    def kernel(self) -> Array:
        """What it convolves with, `(kh, kw, in / groups, out)`."""
        return self.weight[...]

    def __call__(self, x: Array) -> Array:
        return conv2d(
            zero_outside(x) if any(self.padding) else x,
            self.kernel(),
            None if self.bias is None else self.bias[...],
            padding=self.padding,
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
        )


class Linear(nnx.Module):
    """`(..., in) -> (..., out)`."""

    def __init__(self, wide: int, out: int, *, rngs: nnx.Rngs, bias: bool = True):
        self.weight = parameter(uniform(rngs, (wide, out), wide), torch_axes=(1, 0))
        self.bias: Any = parameter(uniform(rngs, (out,), wide)) if bias else None

    def __call__(self, x: Array) -> Array:
        return linear(x, self.weight[...], None if self.bias is None else self.bias[...])


class LayerNorm(nnx.Module):
    """Normalises the channels of every pixel or token: `(..., C) -> (..., C)`."""

    def __init__(self, wide: int, *, eps: float = 1e-5):
        self.weight = parameter(jnp.ones(wide))
        self.bias = parameter(jnp.zeros(wide))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        return layer_norm(x, self.weight[...], self.bias[...], eps=self.eps)


class GroupNorm(nnx.Module):
    """Normalises groups of channels over the whole picture: `(N, h, w, C) -> (N, h, w, C)`."""

    def __init__(self, groups: int, wide: int, *, eps: float = 1e-5):
        self.weight = parameter(jnp.ones(wide))
        self.bias = parameter(jnp.zeros(wide))
        self.groups, self.eps = groups, eps

    def __call__(self, x: Array) -> Array:
        return group_norm(x, self.weight[...], self.bias[...], groups=self.groups, eps=self.eps)


class PReLU(nnx.Module):
    """`max(x, 0)` and a learned share of `min(x, 0)`: one for all channels, or one for each."""

    def __init__(self, channels: int = 1):
        self.weight = parameter(jnp.full(channels, 0.25))

    def __call__(self, x: Array) -> Array:
        share = self.weight[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return jnp.where(x > 0, x, share * x)


class PixelShuffle(nnx.Module):
    """`(N, h, w, C·r²) -> (N, h·r, w·r, C)`."""

    def __init__(self, r: int):
        self.r = r

    def __call__(self, x: Array) -> Array:
        return pixel_shuffle(x, self.r)


class Sequential(nnx.List[Any]):
    """Layers applied in turn; their names are their positions, as in PyTorch."""

    def __call__(self, x: Array) -> Array:
        for layer in self:
            x = layer(x)
        return x
