"""Matmuls on Hopper's tensor cores (wgmma), operands in shared memory and sums in registers.

Float32 operands are multiplied in TF32 (10 bits of mantissa) and summed in float32. wgmma reads
32-bit operands along the contraction axis only and can transpose 16-bit ones alone, so a right
operand in float32 must be stored transposed. The interpreter multiplies in full precision.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from .row_layout import load, mosaic_gpu, pallas

MAX_SMEM_BYTES = 232_448  # shared memory of a thread block on Hopper, bytes
BARRIER_BYTES = 1024  # of shared memory at most for barriers, and to align buffers
CHANNEL_MULTIPLE = 16  # of operands: their rows are then a multiple of 32 bytes, a swizzle
# matmul precisions that allow TF32 or less
TF32_PRECISIONS = (None, "default", "high", "tensorfloat32", "bfloat16", "TF32_TF32_F32")


class Product(NamedTuple):
    """Operands of a matmul, references to shared memory.

    Attributes:
        lhs: `(rows, contraction)`; in 16 bits it may be an array in registers.
        rhs: `(contraction, columns)`, or `(columns, contraction)`.
        is_rhs_transposed: Whether it is the latter; it must be in float32.
    """

    lhs: Any
    rhs: Any
    is_rhs_transposed: bool = True


def padded_channels(channels: int) -> int:
    """Return the number of channels with which a kernel computes."""
    return channels + -channels % CHANNEL_MULTIPLE


def precision_reason(dtype: Any) -> str | None:
    """Return None if the matmul precision allows TF32 or it is not needed, else the reason."""
    precision = jax.default_matmul_precision.value
    if precision in TF32_PRECISIONS or dtype != jnp.float32:
        return None
    return f"it multiplies float32 in TF32, but the matmul precision is {precision!r}"


def smem_reason(usage: str, num_bytes: int) -> str | None:
    """Return None if a program may have so much shared memory, else the reason.

    Args:
        usage: What needs it, in words and in the plural.
        num_bytes: Bytes.
    """
    if num_bytes <= MAX_SMEM_BYTES:
        return None
    return f"{usage} need {num_bytes} bytes of shared memory, the limit is {MAX_SMEM_BYTES}"


def swizzle_bytes(columns: int, dtype: Any) -> int:
    """Return the widest swizzle, 32, 64 or 128 bytes, that divides a row of an operand."""
    return math.gcd(columns * jnp.dtype(dtype).itemsize, 128)


def operand_smem(shape: tuple[int, ...], dtype: Any, swizzle: int | None = None) -> Any:
    """Return the type of shared memory for operands `(..., rows, columns)`: tiled and swizzled.

    Args:
        shape: Shape.
        dtype: Data type.
        swizzle: Bytes of a row of a tile, which has 8 rows; equal for both operands of a matmul. By
            default `swizzle_bytes`.
    """
    swizzle = swizzle or swizzle_bytes(shape[-1], dtype)
    tiling = mosaic_gpu().TilingTransform((8, swizzle // jnp.dtype(dtype).itemsize))
    transforms = (tiling, mosaic_gpu().SwizzleTransform(swizzle))
    return mosaic_gpu().SMEM(shape, dtype, transforms=transforms)


def matmul(products: Sequence[Product], shape: tuple[int, int], interpret: Any) -> Array:
    """Return the sum of products, float32 `shape`, in the layout of wgmma's accumulator.

    Waits for all warps of the warpgroup before it starts, so that they have written their operands.
    """
    if interpret is not None:
        return sum((_interpret(product) for product in products), jnp.zeros(shape, jnp.float32))

    def accumulate(acc: Any) -> Array:
        for lhs, rhs, is_rhs_transposed in products:
            mosaic_gpu().wgmma(acc, lhs, rhs.T if is_rhs_transposed else rhs)
        return acc[...]

    mosaic_gpu().commit_smem()  # wgmma must see what was written to shared memory
    return pallas().run_scoped(accumulate, mosaic_gpu().ACC(shape, jnp.float32))


def _interpret(product: Product) -> Array:
    rhs_axis = 1 if product.is_rhs_transposed else 0
    return lax.dot_general(
        product.lhs[...],
        product.rhs[...],
        (((1,), (rhs_axis,)), ((), ())),
        precision="highest",
        preferred_element_type=jnp.float32,
    )


def load_acc(ref: Any, *index: Any, axis: int | None = None, interpret: Any) -> Array:
    """Load with the register layout of wgmma's accumulator, so that sums need no conversion.

    For a vector, `axis` is the axis of the accumulator that it lacks.
    """
    if interpret is not None:
        return ref[index]
    layout = mosaic_gpu().Layout.WGMMA
    return load(ref.at[index], layout if axis is None else layout.reduce(axis))


def full_acc(
    shape: tuple[int, ...], value: float, interpret: Any, axis: int | None = None
) -> Array:
    """Return float32 registers of one value; `axis` as in `load_acc`."""
    full = jnp.full(shape, value, jnp.float32)
    if interpret is not None:
        return full
    layout = mosaic_gpu().Layout.WGMMA
    return mosaic_gpu().layout_cast(full, layout if axis is None else layout.reduce(axis))
