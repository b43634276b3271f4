"""Train form -> deploy form, exactly: blocks that can become one layer say which."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax.network.convolution import block_diagonal
from esrjax.network.layers import Conv2d

Net = TypeVar("Net", bound=nnx.Module)


class Reparam(nnx.Module):
    """A block whose branches can be written as one layer."""

    def fuse(self) -> nnx.Module:
        """The one layer, with `fuse()(x) = self(x)` for every x."""
        raise NotImplementedError(f"{type(self).__name__} must say what it fuses to")


def deploy(net: Net, kind: type[Reparam] = Reparam) -> Net:
    """A copy of `net` in which every `Reparam` is the layer it fuses to; `net` is left alone.

    kind: fuse only blocks of this kind.
    """
    if isinstance(net, kind):
        return deploy(net.fuse(), kind)  # pyright: ignore[reportReturnType] # a network that is itself one block
    thin = nnx.clone(net)
    _fuse_below(thin, kind)
    return thin


def _fuse_below(node: nnx.Module, kind: type[Reparam]) -> None:
    for name, child in nnx.iter_children(node):
        if isinstance(child, kind):
            put(node, name, deploy(child, kind))
        elif isinstance(child, nnx.Pytree):
            _fuse_below(child, kind)  # pyright: ignore[reportArgumentType] # lists of modules have children too


def put(node: nnx.Module, name: Any, child: nnx.Module) -> None:
    """Make `child` the part `name` of `node`, which may be a list."""
    if isinstance(node, nnx.List):
        node[int(name)] = child
    else:
        setattr(node, str(name), child)


class Affine(NamedTuple):
    """A stride-1 convolution as numbers: `w (kh, kw, in, out)`, `b (out,)`.

    The input is zero-padded once, before the first factor; composition is then exact at the
    border too.
    """

    w: Array
    b: Array

    @classmethod
    def of(cls, conv: Conv2d) -> Affine:
        """The numbers of a layer; grouped kernels become block-diagonal, dilated ones get holes."""
        if conv.stride != 1:
            raise ValueError(f"a convolution of stride {conv.stride} is not an Affine")
        w = conv.kernel()
        w = w if conv.groups == 1 else block_diagonal(w, conv.groups)
        w = w if conv.dilation == 1 else _holed(w, conv.dilation)
        b = jnp.zeros(w.shape[-1], w.dtype) if conv.bias is None else conv.bias[...]
        return cls(w, b)

    @classmethod
    def identity(cls, channels: int, dtype: jnp.dtype | type = jnp.float32) -> Affine:
        """`x -> x`."""
        return cls(jnp.eye(channels, dtype=dtype)[None, None], jnp.zeros(channels, dtype))

    def then(self, after: Affine) -> Affine:
        """`x -> after(self(x))`: `(kh + kh' - 1, kw + kw' - 1, in, out')`."""
        kh, kw = after.w.shape[0] - 1, after.w.shape[1] - 1
        padded = jnp.pad(self.w, ((kh, kh), (kw, kw), (0, 0), (0, 0)))
        w = lax.conv_general_dilated(
            padded.transpose(2, 0, 1, 3),
            after.w[::-1, ::-1],
            window_strides=(1, 1),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=lax.Precision.HIGHEST,
        ).transpose(1, 2, 0, 3)
        b = jnp.einsum("i,hwio->o", self.b, after.w, precision="highest") + after.b
        return Affine(w, b)

    def __add__(self, other: Affine) -> Affine:  # pyright: ignore[reportIncompatibleMethodOverride] # sum of maps
        """`x -> self(x) + other(x)`, kernels centred on each other."""
        kh = max(self.w.shape[0], other.w.shape[0])
        kw = max(self.w.shape[1], other.w.shape[1])
        return Affine(_widened(self.w, kh, kw) + _widened(other.w, kh, kw), self.b + other.b)

    def scaled(self, scale: Array, shift: Array | None = None) -> Affine:
        """`x -> scale · self(x) + shift`, per output channel, as BatchNorm does: `(out,)` each."""
        b = self.b * scale
        return Affine(self.w * scale[None, None, None, :], b if shift is None else b + shift)

    def conv(self, groups: int = 1, bias: bool = True) -> Conv2d:
        """The layer; with `groups` the kernel's blocks off the diagonal are taken to be zero.

        Without `bias`, `b` is taken to be zero too.
        """
        kh, kw, wide, out = self.w.shape
        layer = nnx.eval_shape(
            lambda: Conv2d(wide, out, (kh, kw), groups=groups, bias=bias, rngs=nnx.Rngs(0))
        )
        layer.weight.set_value(self.w if groups == 1 else _diagonal_blocks(self.w, groups))
        if bias:
            layer.bias.set_value(self.b)
        return layer


def _holed(w: Array, dilation: int) -> Array:
    kh, kw, wide, out = w.shape
    holed = jnp.zeros((dilation * (kh - 1) + 1, dilation * (kw - 1) + 1, wide, out), w.dtype)
    return holed.at[::dilation, ::dilation].set(w)


def _widened(w: Array, kh: int, kw: int) -> Array:
    h, wide = kh - w.shape[0], kw - w.shape[1]
    if h % 2 or wide % 2:
        raise ValueError(f"kernels {w.shape[:2]} and {(kh, kw)} have no common centre")
    return jnp.pad(w, ((h // 2,) * 2, (wide // 2,) * 2, (0, 0), (0, 0)))


def _diagonal_blocks(w: Array, groups: int) -> Array:
    kh, kw, wide, out = w.shape
    blocks = w.reshape(kh, kw, groups, wide // groups, groups, out // groups)
    return jnp.einsum("hwgigo->hwigo", blocks).reshape(kh, kw, wide // groups, out)
