"""Low-rank adapters (LoRA) on convolutions, which merge into the kernels for deployment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.errors import RecipeError, list_some
from esrjax.io import matches_any, unmatched_patterns
from esrjax.nn.functional import matmul
from esrjax.nn.layers import Conv2d, conv_with_weights, param, uniform_init
from esrjax.nn.reparam import Reparam, deploy

Net = TypeVar("Net", bound=nnx.Module)


class LoRAConv2d(Conv2d, Reparam):
    """A convolution with the kernel `W + alpha / rank · B A`; a plain `Conv2d` in the deploy form.

    `B (out / groups·kh, rank·kw)` is zero at first, `A (rank·kw, in·kw)` is not. The elements of
    their product, row by row, are those of a kernel in PyTorch's layout, `(out, in / groups, kh,
    kw)`. `W` and the bias keep their names, and are meant to be frozen.

    Source: LoRA (arXiv:2106.09685) in its form for convolutions; DSCLoRA (arXiv:2504.11271).

    Args:
        conv: The convolution; its parameters are shared, not copied.
        rank: Rank of the update.
        alpha: Scale of the update, over `rank`.
        rngs: Source of the initial `A`.
    """

    def __init__(self, conv: Conv2d, *, rank: int, alpha: float, rngs: nnx.Rngs):
        self.weight, self.bias = conv.weight, conv.bias
        self.padding, self.stride = conv.padding, conv.stride
        self.dilation, self.groups = conv.dilation, conv.groups
        kh, kw, group_in, out_channels = conv.weight.shape
        num_columns = group_in * conv.groups * kw
        dtype = conv.weight.dtype
        a = uniform_init(rngs, (rank * kw, num_columns), num_columns)
        self.lora_A = param(a.astype(dtype))
        self.lora_B = param(jnp.zeros((out_channels // conv.groups * kh, rank * kw), dtype))
        self.scale = alpha / rank

    def effective_weight(self) -> Array:
        """Return `W + alpha / rank · B A`, `(kh, kw, in / groups, out)`."""
        kh, kw, group_in, out_channels = self.weight.shape
        # A plain reshape, as loralib's, although rows of the product are not rows of kernels:
        # factors trained elsewhere fit this order of elements only.
        delta_w = matmul(self.lora_B[...], self.lora_A[...]).reshape(out_channels, group_in, kh, kw)
        return self.weight[...] + self.scale * delta_w.transpose(2, 3, 1, 0)

    def fuse(self) -> Conv2d:
        """Return a plain convolution with `effective_weight` as its kernel."""
        b = None if self.bias is None else self.bias[...]
        return conv_with_weights(self.effective_weight(), b, **self.options)


def add_lora(
    net: Net, target_modules: Sequence[str], *, rank: int, alpha: float, rngs: nnx.Rngs
) -> Net:
    """Return a copy of `net` with adapters on some of its convolutions.

    Args:
        net: A network.
        target_modules: Glob patterns of the paths of convolutions.
        rank: As of `LoRAConv2d`.
        alpha: As of `LoRAConv2d`.
        rngs: Source of the initial values.

    Raises:
        RecipeError: A pattern matches no convolution.
    """
    conv_paths: list[str] = []

    def adapt(path: tuple[Any, ...], node: Any) -> Any:
        if type(node) is not Conv2d:  # also a subclass, which may compute its kernel
            return node
        conv_paths.append(".".join(map(str, path)))
        is_target = matches_any(conv_paths[-1], target_modules)
        return LoRAConv2d(node, rank=rank, alpha=alpha, rngs=rngs) if is_target else node

    adapted = nnx.recursive_map(adapt, nnx.clone(net))
    if unmatched := unmatched_patterns(target_modules, conv_paths):
        raise RecipeError(
            f"Pattern {unmatched[0]!r} matches no convolution",
            rule="a target module is a glob pattern of the paths of Conv2d modules",
            location=list_some(sorted(conv_paths), 12),
            remedy="correct the pattern, or remove it",
        )
    return adapted


def merge_lora(net: Net) -> Net:
    """Return a copy of `net` with its adapters merged into the kernels of their convolutions."""
    return deploy(net, LoRAConv2d)
