"""Low-rank adapters on convolutions: little is trained, and nothing of it is left when deployed."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.errors import UserError
from esrjax.network.layers import Conv2d, parameter, uniform
from esrjax.network.reparam import Reparam, deploy, put
from esrjax.network.words import matmul

Net = TypeVar("Net", bound=nnx.Module)


class NothingToAdapt(UserError):
    """A glob that matches no convolution."""


class LoRAConv2d(Conv2d, Reparam):
    """A convolution whose kernel `W` is moved by `alpha / rank · B A`; one kernel when deployed.

    `B (out / groups·kh, rank·kw)` is zero at first, `A (rank·kw, in·kw)` is not; the numbers of
    their product, row by row, are those of a kernel in PyTorch's layout. `W` and the bias, which
    keep their names, are meant to be frozen.
    Source: LoRA (arXiv:2106.09685) in its form for convolutions; DSCLoRA (arXiv:2504.11271).
    """

    def __init__(self, conv: Conv2d, *, rank: int, alpha: float, rngs: nnx.Rngs):
        self.weight, self.bias = conv.weight, conv.bias
        self.padding, self.stride = conv.padding, conv.stride
        self.dilation, self.groups = conv.dilation, conv.groups
        kh, kw, wide, out = conv.weight.shape
        columns = wide * conv.groups * kw
        dtype = conv.weight.dtype
        a = uniform(rngs, (rank * kw, columns), columns)
        self.lora_A = parameter(a.astype(dtype))
        self.lora_B = parameter(jnp.zeros((out // conv.groups * kh, rank * kw), dtype))
        self.scale = alpha / rank

    def kernel(self) -> Array:
        kh, kw, wide, out = self.weight.shape
        moved = matmul(self.lora_B[...], self.lora_A[...]).reshape(out, wide, kh, kw)
        return self.weight[...] + self.scale * moved.transpose(2, 3, 1, 0)

    def fuse(self) -> Conv2d:
        kh, kw, wide, out = self.weight.shape
        merged = nnx.eval_shape(
            lambda: Conv2d(
                wide * self.groups,
                out,
                (kh, kw),
                padding=self.padding,
                stride=self.stride,
                dilation=self.dilation,
                groups=self.groups,
                bias=self.bias is not None,
                rngs=nnx.Rngs(0),
            )
        )
        merged.weight.set_value(self.kernel())
        if self.bias is not None:
            merged.bias.set_value(self.bias[...])
        return merged


def adapt(net: Net, where: Sequence[str], *, rank: int, alpha: float, rngs: nnx.Rngs) -> Net:
    """A copy of `net` with adapters on the convolutions whose paths match a glob of `where`."""
    adapted = nnx.clone(net)
    plain = {
        ".".join(map(str, path)): part
        for path, part in nnx.iter_modules(adapted)
        if type(part) is Conv2d
    }
    for glob in where:
        if not any(fnmatchcase(path, glob) for path in plain):
            raise _nothing(glob, plain)
    for path, conv in plain.items():
        if any(fnmatchcase(path, glob) for glob in where):
            node, name = _holder(adapted, path)
            put(node, name, LoRAConv2d(conv, rank=rank, alpha=alpha, rngs=rngs))
    return adapted


def merge(net: Net) -> Net:
    """A copy of `net` with its adapters merged into the kernels that they move."""
    return deploy(net, LoRAConv2d)


def _holder(net: nnx.Module, path: str) -> tuple[nnx.Module, str]:
    """The module or list that holds the part at `path`, and the part's name in it."""
    *way, name = path.split(".")
    node: Any = net
    for step in way:
        node = node[int(step)] if isinstance(node, nnx.List) else getattr(node, step)
    return node, name


def _nothing(glob: str, plain: dict[str, Conv2d]) -> NothingToAdapt:
    return NothingToAdapt(
        f"the glob {glob!r} matches no convolution",
        rule="adapters go on plain convolutions, named by their paths",
        place=", ".join(sorted(plain)[:12]),
        remedy="correct the glob, or drop it",
    )
