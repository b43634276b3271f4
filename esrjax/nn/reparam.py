"""Structural reparameterisation: blocks whose branches fuse into one layer, and the algebra of it.

Source: RepVGG (arXiv:2101.03697). The deploy form computes the same function exactly.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax.nn.conv_lowering import block_diagonal, lax_conv2d
from esrjax.nn.layers import Conv2d, conv_with_weights

Net = TypeVar("Net", bound=nnx.Module)


class Reparam(nnx.Module):
    """A block whose branches fuse into one layer."""

    def fuse(self) -> nnx.Module:
        """Return the fused layer, with `fuse()(x) = self(x)` for every x."""
        raise NotImplementedError(f"{type(self).__name__} must implement fuse()")


def deploy(net: Net, block_type: type[Reparam] = Reparam) -> Net:
    """Return a copy of `net` in which every `Reparam` is replaced by the layer it fuses to.

    A fused layer that is again a `Reparam`, or contains one, is fused as well; `net` does not
    change.

    Args:
        net: A network in the train form.
        block_type: Fuse blocks of this class only.
    """
    if isinstance(net, block_type):
        return deploy(net.fuse(), block_type)  # pyright: ignore[reportReturnType] # a network that is itself one block
    deployed = nnx.clone(net)
    _fuse_children(deployed, block_type)
    return deployed


def has_branches(net: nnx.Module) -> bool:
    """Return whether `net` contains a `Reparam`, so that `deploy` changes it."""
    return any(isinstance(module, Reparam) for _, module in nnx.iter_modules(net))


def _fuse_children(node: nnx.Module, block_type: type[Reparam]) -> None:
    for name, child in nnx.iter_children(node):
        if isinstance(child, block_type):
            # Also where `node` is a list, whose items are its attributes "0", "1", …
            setattr(node, str(name), deploy(child, block_type))
        elif isinstance(child, nnx.Pytree):
            _fuse_children(child, block_type)  # pyright: ignore[reportArgumentType] # lists of modules have children too


class Affine(NamedTuple):
    """A dense convolution of stride 1 as a linear map, for the algebra of fusing.

    The input of the whole chain is zero-padded once, before its first convolution; only then is the
    composition of two convolutions one convolution at the border too.

    Attributes:
        w: Kernel `(kh, kw, in, out)`.
        b: Bias `(out,)`.
    """

    w: Array
    b: Array

    @classmethod
    def from_conv(cls, conv: Conv2d) -> Affine:
        """Return the map of a layer; a grouped kernel becomes block-diagonal, a dilated one sparse.

        Raises:
            ValueError: The stride is not 1.
        """
        if conv.stride != 1:
            raise ValueError(f"a convolution of stride {conv.stride} cannot be fused")
        w = conv.effective_weight()
        w = w if conv.groups == 1 else block_diagonal(w, conv.groups)
        gaps = (0, 0, conv.dilation - 1)  # zeros between the taps
        w = lax.pad(w, jnp.zeros((), w.dtype), (gaps, gaps, (0, 0, 0), (0, 0, 0)))
        b = jnp.zeros(w.shape[-1], w.dtype) if conv.bias is None else conv.bias[...]
        return cls(w, b)

    @classmethod
    def identity(cls, channels: int, dtype: jnp.dtype | type = jnp.float32) -> Affine:
        """Return the map `x -> x`, a 1x1 kernel."""
        return cls(jnp.eye(channels, dtype=dtype)[None, None], jnp.zeros(channels, dtype))

    def then(self, after: Affine) -> Affine:
        """Return `x -> after(self(x))`, with a kernel `(kh + kh' - 1, kw + kw' - 1, in, out')`.

        The kernels are convolved with each other ("full" padding): the inputs of `self` are the
        batch, its kernel the image, and `after` is flipped, for XLA correlates.
        """
        kh, kw = after.w.shape[0] - 1, after.w.shape[1] - 1
        padded = jnp.pad(self.w, ((kh, kh), (kw, kw), (0, 0), (0, 0)))
        images, flipped = padded.transpose(2, 0, 1, 3), after.w[::-1, ::-1]
        with jax.default_matmul_precision("highest"):
            w = lax_conv2d(images, flipped, padding=(0, 0), stride=1, dilation=1)
            b = jnp.einsum("i,hwio->o", self.b, after.w) + after.b
        return Affine(w.transpose(1, 2, 0, 3), b)

    def __add__(self, other: Affine) -> Affine:  # pyright: ignore[reportIncompatibleMethodOverride] # sum of maps
        """Return `x -> self(x) + other(x)`, with the kernels centred on each other."""
        kh = max(self.w.shape[0], other.w.shape[0])
        kw = max(self.w.shape[1], other.w.shape[1])
        return Affine(_pad_kernel(self.w, kh, kw) + _pad_kernel(other.w, kh, kw), self.b + other.b)

    def scale_output(self, scale: Array, shift: Array | None = None) -> Affine:
        """Return `x -> scale · self(x) + shift`, with `(out,)` factors and shifts, as BatchNorm."""
        b = self.b * scale
        return Affine(self.w * scale[None, None, None, :], b if shift is None else b + shift)

    def to_conv(self, groups: int = 1, bias: bool = True) -> Conv2d:
        """Return the map as a layer.

        Args:
            groups: Groups of the layer; the kernel's blocks off the diagonal must be zero, which is
                not checked.
            bias: Whether the layer has a bias; without one `b` must be zero, which is not checked.
        """
        w = self.w if groups == 1 else _grouped_kernel(self.w, groups)
        return conv_with_weights(w, self.b if bias else None, groups=groups)


def _pad_kernel(w: Array, kh: int, kw: int) -> Array:
    """Pad a kernel with zeros on all sides to `(kh, kw, in, out)`; its centre stays the centre."""
    extra_h, extra_w = kh - w.shape[0], kw - w.shape[1]
    if extra_h % 2 or extra_w % 2:
        raise ValueError(f"kernels {w.shape[:2]} and {(kh, kw)} have no common centre")
    return jnp.pad(w, ((extra_h // 2,) * 2, (extra_w // 2,) * 2, (0, 0), (0, 0)))


def _grouped_kernel(w: Array, groups: int) -> Array:
    """Return the diagonal blocks of a dense kernel, `(kh, kw, in / groups, out)`; others are lost.

    The inverse of `block_diagonal`.
    """
    kh, kw, in_channels, out_channels = w.shape
    blocks = w.reshape(kh, kw, groups, in_channels // groups, groups, out_channels // groups)
    return jnp.einsum("hwgigo->hwigo", blocks).reshape(kh, kw, in_channels // groups, out_channels)
