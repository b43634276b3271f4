"""Layers of networks, with PyTorch's parameter names, defaults and initialisation.

Images are `(N, h, w, C)`; kernels are `(kh, kw, in / groups, out)`.
"""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from numpy.typing import NDArray

from esrjax.nn import ops
from esrjax.nn.compilation import is_tracing
from esrjax.nn.functional import conv2d, group_norm, layer_norm, linear, pixel_shuffle
from esrjax.nn.masking import mask_invalid, valid_mask

_SHAPES_ONLY = ContextVar("_SHAPES_ONLY", default=False)


@contextmanager
def shapes_only() -> Generator[None]:
    """Initialize layers without random numbers, for `nnx.eval_shape`: twice as fast or more."""
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


def uniform_init(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    """Return values drawn from U(−1/√fan_in, 1/√fan_in), in float32.

    PyTorch's default for weights and biases of `Conv2d` and `Linear`.

    Args:
        rngs: A key is taken from its stream `params`.
        shape: Shape of the result.
        fan_in: Number of inputs of one output.
    """
    bound = 1 / math.sqrt(fan_in)
    return _draw(rngs, shape, lambda rng: rng.uniform(-bound, bound, shape))


def normal_init(rngs: nnx.Rngs, shape: tuple[int, ...], stddev: float) -> Array:
    """Return values drawn from N(0, stddev²), in float32.

    In place of PyTorch's `trunc_normal_` as networks call it (`std=0.02`, cut off at ±2, which is
    100 standard deviations): the truncation never takes effect.

    Args:
        rngs: A key is taken from its stream `params`.
        shape: Shape of the result.
        stddev: Standard deviation.
    """
    return _draw(rngs, shape, lambda rng: rng.normal(0, stddev, shape))


def _draw(
    rngs: nnx.Rngs, shape: tuple[int, ...], sample: Callable[[np.random.Generator], NDArray[Any]]
) -> Array:
    """Return values drawn by NumPy from the next key: JAX would compile for every shape."""
    if _SHAPES_ONLY.get():
        return jnp.zeros(shape, jnp.float32)
    with jax.ensure_compile_time_eval():  # or a key would be traced though `rngs` is not
        key_data = jax.random.key_data(rngs.params())

    def draw(key_data: Any) -> NDArray[np.float32]:
        return sample(np.random.default_rng(np.asarray(key_data))).astype(np.float32)

    if is_tracing():  # nothing is drawn under `nnx.eval_shape`
        shape_dtype = jax.ShapeDtypeStruct(shape, jnp.float32)
        return jax.pure_callback(draw, shape_dtype, key_data, vmap_method="sequential")
    return _copy(draw(key_data))


def _copy(values: NDArray[np.float32]) -> Array:
    # With the dtype named, JAX copies the array; else it compiles a program that converts it.
    return jnp.asarray(values, jnp.float32)


def param(
    value: Array | NDArray[Any], torch_axes: tuple[int, ...] | None = None
) -> nnx.Param[Array]:
    """Return a trainable parameter.

    Args:
        value: Initial value; an array of NumPy becomes float32.
        torch_axes: Axes by which `value.transpose(torch_axes)` has PyTorch's layout; None where the
            layouts agree.
    """
    # `jnp.full(c, 0.1)` is weakly typed. The first training steps would make some of the state
    # strongly typed, and every change of a type compiles the step again.
    is_numpy = isinstance(value, np.ndarray)
    value = _copy(value.astype(np.float32)) if is_numpy else jnp.asarray(value, value.dtype)
    return nnx.Param(value, torch_axes=torch_axes)


class Conv2d(nnx.Module):
    """2-D convolution with zero padding: `(N, h, w, in) -> (N, h', w', out)`.

    Within `masking.valid_region`, pixels that do not exist act as zeros.

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

    Attributes:
        rounds_input: Whether the layer also changes its input, so that an op of `effective_weight`
            and bias alone does not compute its output (`quantization.QuantConv2d`).
    """

    rounds_input: ClassVar[bool] = False

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

        Subclasses with another one than `weight` override this (`lora.LoRAConv2d`).
        """
        return self.weight[...]

    @property
    def options(self) -> dict[str, Any]:
        """Padding, stride, dilation and groups, as keyword arguments of `functional.conv2d`."""
        names = ("padding", "stride", "dilation", "groups")
        return {name: getattr(self, name) for name in names}

    def __call__(self, x: Array) -> Array:
        x = mask_invalid(x) if any(self.padding) else x
        b = None if self.bias is None else self.bias[...]
        return conv2d(x, self.effective_weight(), b, **self.options)


def conv_with_weights(w: Array, b: Array | None, *, groups: int = 1, **options: Any) -> Conv2d:
    """Return a convolution with these weights.

    Args:
        w: Kernel `(kh, kw, in / groups, out)`.
        b: Bias `(out,)`; None for a layer without one.
        groups: Number of groups of channels.
        **options: Padding, stride and dilation, as of `Conv2d`.
    """
    kh, kw, group_in, out_channels = w.shape
    options |= {"groups": groups, "bias": b is not None}
    conv = nnx.eval_shape(  # abstract: no initial values are drawn
        lambda: Conv2d(group_in * groups, out_channels, (kh, kw), rngs=nnx.Rngs(0), **options)
    )
    conv.weight.set_value(w)
    if b is not None:
        conv.bias.set_value(b)
    return conv


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
        self.weight = param(np.ones(num_channels))
        self.bias = param(np.zeros(num_channels))
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
        self.weight = param(np.ones(num_channels))
        self.bias = param(np.zeros(num_channels))
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
        self.weight = param(np.full(num_parameters, 0.25))

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


class FusedBlock(nnx.Module):
    """A block of layers that one op computes where a kernel runs it.

    Called one by one, the layers have outputs to hook, paths to count by and kernels to adapt;
    inside an op they have none of these. So the op is used only where a kernel makes it faster.

    Attributes:
        op: The op, of `esrjax.nn.ops` or of another package: `op = staticmethod(ops.spab)`.
    """

    op: ClassVar[Callable[..., Array]]

    def operands(self, u: Array) -> tuple[Array, ...]:
        """Return the arguments of the op for the input `u` of the block."""
        raise NotImplementedError(f"{type(self).__name__} must implement operands()")

    def forward(self, u: Array) -> Any:
        """Return the output of the block by its layers; the reference."""
        raise NotImplementedError(f"{type(self).__name__} must implement forward()")

    def fused(self, u: Array) -> Any:
        """Return the output of the block by the op."""
        return self.op(*self.operands(u))

    def __call__(self, u: Array) -> Any:
        is_fusable = not any(getattr(m, "rounds_input", False) for _, m in nnx.iter_modules(self))
        is_fused = is_fusable and ops.has_kernel(self.op, self.operands(u))
        return self.fused(u) if is_fused else self.forward(u)


def conv_operands(*convs: Conv2d) -> tuple[Array, ...]:
    """Return kernel and bias (if any) of each convolution, and the mask of valid pixels.

    The mask `(h, w)` is left out where every pixel is valid.
    """
    pairs = [(conv.effective_weight(), conv.bias) for conv in convs]
    arrays = [array for w, b in pairs for array in ([w] if b is None else [w, b[...]])]
    mask = valid_mask()
    return (*arrays, *([] if mask is None else [mask]))
