"""Fake quantization: convolutions whose kernels and inputs have 8 bits, trained in floating point.

Kernels are int8, symmetric, with one scale for each output channel; inputs are uint8, with one
scale and zero point for each tensor. Both are rounded and scaled back, so that the network stays
one of float32; an export to ONNX stores the integers (`QuantizeLinear`, `DequantizeLinear`), and
engines compute with them. Gradients pass through the rounding (straight-through).

Source: Jacob et al., CVPR 2018 (arXiv:1712.05877).
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from esrjax.errors import RecipeError, list_some
from esrjax.io import matches_any, unmatched_patterns
from esrjax.nn.functional import counted_op
from esrjax.nn.layers import Conv2d, conv_with_weights
from esrjax.nn.state_dict import KeyMap

Net = TypeVar("Net", bound=nnx.Module)
RANGE = "input_range"  # name of the tensor that makes a convolution of a checkpoint a quantized one
RANGE_STEP = 0.01  # share of a new batch in the moving average of the range, as in PyTorch
MAX_INPUT, MAX_WEIGHT = 255, 127  # largest integers of uint8 inputs and int8 weights


# --- ops ---


def input_grid(input_range: Any) -> tuple[Array, Array]:
    """Return scale and zero point, an integer, of the inputs of a layer, float32.

    Args:
        input_range: The lowest and the highest value, `(2,)`; 0 is included in any case.
    """
    low, high = jnp.minimum(input_range[0], 0), jnp.maximum(input_range[1], 0)
    scale = jnp.maximum((high - low) / MAX_INPUT, jnp.finfo(jnp.float32).tiny)
    return scale, jnp.round(-low / scale)


def weight_scale(w: Any) -> Array:
    """Return the scale of each output channel, `(1, 1, 1, out)`, of a kernel in Flax's layout."""
    scale = jnp.max(jnp.abs(w), axis=(0, 1, 2), keepdims=True) / MAX_WEIGHT
    return jnp.maximum(scale, jnp.finfo(jnp.float32).tiny)


@counted_op()
def fake_quantize(x: Array, input_range: Array) -> Array:
    """Return `x` rounded to the 256 values of `input_grid`, in its dtype.

    The gradient is 1 for values within the grid and 0 for those that are clipped. A range that is
    not finite, as of a layer that has seen no training image, changes nothing.

    Args:
        x: Any array.
        input_range: The lowest and the highest value, `(2,)`.
    """
    scale, zero_point = input_grid(input_range.astype(jnp.float32))
    rounded = _round_to_grid(x.astype(jnp.float32), scale, zero_point).astype(x.dtype)
    return jnp.where(jnp.isfinite(input_range).all(), rounded, x)


@jax.custom_vjp
def _round_to_grid(x: Array, scale: Array, zero_point: Array) -> Array:
    # As ONNX's QuantizeLinear: round half to even, then clip.
    return (jnp.clip(jnp.round(x / scale) + zero_point, 0, MAX_INPUT) - zero_point) * scale


def _round_to_grid_fwd(x: Array, scale: Array, zero_point: Array) -> tuple[Array, Array]:
    low, high = -zero_point * scale, (MAX_INPUT - zero_point) * scale
    return _round_to_grid(x, scale, zero_point), (x >= low) & (x <= high)


_round_to_grid.defvjp(
    _round_to_grid_fwd,
    lambda is_inside, cotangent: (jnp.where(is_inside, cotangent, 0), None, None),
)


@counted_op()
def fake_quantize_weight(w: Array) -> Array:
    """Return a kernel rounded to 255 values for each output channel, in its dtype; gradient 1."""
    return _round_weight(w)


@jax.custom_vjp
def _round_weight(w: Array) -> Array:
    scale = weight_scale(w.astype(jnp.float32))
    return (jnp.round(w.astype(jnp.float32) / scale) * scale).astype(w.dtype)


_round_weight.defvjp(lambda w: (_round_weight(w), None), lambda _, cotangent: (cotangent,))


# --- layer ---


class QuantConv2d(Conv2d):
    """A convolution with an int8 kernel and uint8 inputs; its bias and its output are not rounded.

    In training mode the range of the inputs is a moving average of those of the batches, the first
    of which it starts from; in evaluation mode it is fixed. Weight and bias keep their names.

    Args:
        conv: The convolution; its parameters are shared, not copied.

    Attributes:
        input_range: The lowest and the highest input, `(2,)`; infinite before the first batch.
    """

    rounds_input: ClassVar[bool] = True

    def __init__(self, conv: Conv2d):
        self.weight, self.bias = conv.weight, conv.bias
        self.padding, self.stride = conv.padding, conv.stride
        self.dilation, self.groups = conv.dilation, conv.groups
        self.input_range = nnx.BatchStat(jnp.asarray([np.inf, -np.inf], jnp.float32))
        self.use_running_average = True  # set by `train()` and `eval()`

    def effective_weight(self) -> Array:
        """Return the rounded kernel, `(kh, kw, in / groups, out)`."""
        return fake_quantize_weight(self.weight[...])

    def __call__(self, x: Array) -> Array:
        if not self.use_running_average:
            self.input_range[...] = self._updated_range(jax.lax.stop_gradient(x))
        return super().__call__(fake_quantize(x, self.input_range[...]))

    def _updated_range(self, x: Array) -> Array:
        old = self.input_range[...]
        batch = jnp.stack([jnp.min(x), jnp.max(x)]).astype(old.dtype)
        return jnp.where(jnp.isfinite(old), old + RANGE_STEP * (batch - old), batch)


# --- networks ---


def add_quantization(net: Net, exclude: Sequence[str] = ()) -> Net:
    """Return a copy of `net`, a network in deploy form, with its convolutions quantized.

    Args:
        net: The network.
        exclude: Glob patterns of the paths of convolutions that stay in float32.

    Raises:
        RecipeError: A pattern matches no convolution, or no convolution is left.
    """
    paths = _conv_paths(net, Conv2d)
    included = [path for path in paths if not matches_any(path, exclude)]
    unmatched = unmatched_patterns(exclude, paths)
    if included and not unmatched:
        return quantize_convs(net, included)
    raise RecipeError(
        f"quantization: pattern {unmatched[0]!r} matches no convolution"
        if unmatched
        else "quantization: no convolution is left to quantize",
        rule="exclude contains glob patterns of the paths of convolutions that stay in float32",
        location=list_some(sorted(paths), 12),
        remedy="correct the pattern, or remove it",
    )


def quantize_convs(net: Net, paths: Collection[str]) -> Net:
    """Return a copy of `net` with the convolutions at `paths` quantized; other paths are ignored.

    Args:
        net: The network.
        paths: `block_1.c1`, as `quantized_convs` returns them.
    """
    return _map_convs(
        net, lambda path, conv: QuantConv2d(conv) if path in paths and is_plain(conv) else conv
    )


def quantize_as(net: Net, state_dict: Collection[str], key_map: KeyMap) -> Net:
    """Return `net` with those convolutions quantized that a state dict has ranges of.

    Args:
        net: A network in deploy form; an abstract one will do.
        state_dict: Its keys are used.
        key_map: The state-dict keys of the network's method.
    """
    paths = {key_map.to_flax(key).removesuffix(f".{RANGE}") for key in state_dict if is_range(key)}
    return nnx.eval_shape(lambda: quantize_convs(net, paths)) if paths else net


def is_range(key: str) -> bool:
    """Return whether a key of a state dict is that of the range of a quantized convolution."""
    return key.split(".")[-1] == RANGE


def remove_quantization(net: Net) -> Net:
    """Return a copy of `net` with the same weights in float32 convolutions."""

    def plain(path: str, conv: Conv2d) -> Conv2d:
        if not isinstance(conv, QuantConv2d):
            return conv
        bias = None if conv.bias is None else conv.bias[...]
        return conv_with_weights(conv.weight[...], bias, **conv.options)

    return _map_convs(net, plain)


def quantized_convs(net: nnx.Module) -> tuple[str, ...]:
    """Return the paths of the quantized convolutions of a network, sorted."""
    return tuple(sorted(_conv_paths(net, QuantConv2d)))


def is_plain(conv: Conv2d) -> bool:
    """Return whether a layer is a `Conv2d` itself, not a subclass with a kernel of its own."""
    return type(conv) is Conv2d


def _conv_paths(net: nnx.Module, cls: type[Conv2d]) -> list[str]:
    return [".".join(map(str, p)) for p, module in nnx.iter_modules(net) if type(module) is cls]


def _map_convs(net: Net, change: Callable[[str, Conv2d], Conv2d]) -> Net:
    def visit(path: tuple[Any, ...], node: Any) -> Any:
        return change(".".join(map(str, path)), node) if isinstance(node, Conv2d) else node

    return nnx.recursive_map(visit, nnx.clone(net))
