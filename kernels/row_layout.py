"""Tiles of which each thread has whole rows, and version-independent access to Pallas.

A tile is `(rows, columns)`, spread over the 128 threads of a warpgroup. Every thread has whole rows
in its registers, so reductions along a row need no communication, no shared memory is used,
and columns need no padding. Layouts are those of Pallas on Mosaic GPU. Its interpreter does not
model threads: there layouts are left out, and nothing else changes.
"""

import functools
import inspect
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

WARPGROUP_THREADS = 128  # four warps of 32
INTERPRETER_THREADS = 8
# "Lane" or "Warpgroup", which lowers most kernels but not bfloat16 blocks of convolutions ("Stride
# 40 is not divisible by 32"), and is the default since JAX 0.11.
SEMANTICS = "Lane"
MAX_COLUMNS = 64  # three rows of float32 must fit into the (at most 255) registers of a thread


@functools.cache
def pallas() -> Any:
    """Return the module `pallas`, imported at the first use of a kernel: the import takes time."""
    from jax.experimental import pallas

    return pallas


@functools.cache
def mosaic_gpu() -> Any:
    """Return the module `pallas.mosaic_gpu`, likewise."""
    from jax.experimental.pallas import mosaic_gpu

    return mosaic_gpu


def interpreter_params() -> Any:
    """Return the parameters with which kernels run on a CPU; unwritten memory is NaN there.

    Raises:
        RuntimeError: XLA has too few threads: warpgroups, which wait for each other, would hang.
    """
    num_threads = int(os.environ.get("NPROC") or os.cpu_count() or 1)
    if num_threads < INTERPRETER_THREADS:
        raise RuntimeError(
            f"Kernels cannot be interpreted with {num_threads} threads of XLA, they need "
            f"{INTERPRETER_THREADS}: set NPROC={INTERPRETER_THREADS} before the program starts"
        )
    if hasattr(mosaic_gpu(), "InterpretGPUParams"):
        return mosaic_gpu().InterpretGPUParams()
    # not public before JAX 0.11
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


def load(ref: Any, layout: Any) -> Array:
    """Load from memory into registers with `layout`.

    JAX 0.10 requires an index argument (`idx`), JAX 0.12 has none: references are indexed by the
    caller, and the argument is passed only where it is required. By default Pallas refuses loads
    for which it has no optimized code; `optimized=False` allows them.
    """
    parameters = inspect.signature(mosaic_gpu().load).parameters
    kwargs = (
        {"idx": ()}
        if "idx" in parameters and parameters["idx"].default is inspect.Parameter.empty
        else {}
    )
    return mosaic_gpu().load(ref, layout=layout, optimized=False, **kwargs)


def make_kernel(
    body: Callable[..., None],
    operands: Sequence[Any],
    *,
    flops: int,
    transcendentals: int = 0,
    out_type: Any,
    **options: Any,
) -> Callable[..., Any]:
    """Return `mosaic_gpu().kernel`, with its cost for XLA's scheduler where JAX (0.12) takes it.

    Args:
        body: Computes one program.
        operands: The arrays that the kernel will be called with.
        flops: Floating-point operations of all programs.
        transcendentals: Exponentials of all programs.
        out_type: Shape and dtype of the output, or a list of them.
        **options: Further arguments of `mosaic_gpu().kernel`.
    """
    if "cost_estimate" in inspect.signature(mosaic_gpu().kernel).parameters:
        arrays = [*operands, *(out_type if isinstance(out_type, list) else [out_type])]
        options["cost_estimate"] = pallas().CostEstimate(
            flops=flops,
            transcendentals=transcendentals,
            bytes_accessed=sum(array.size * array.dtype.itemsize for array in arrays),
        )
    semantics = getattr(mosaic_gpu().LoweringSemantics, SEMANTICS)
    params = mosaic_gpu().CompilerParams(lowering_semantics=semantics)
    return mosaic_gpu().kernel(body, out_type=out_type, compiler_params=params, **options)


def store(ref: Any, value: Array) -> None:
    """Store registers to memory; `ref` is indexed by the caller, with `ref.at[...]`.

    Since JAX 0.12, an assignment refuses stores for which Pallas has no optimized code, and `store`
    exists, which allows them. Before, an assignment allowed them.
    """
    if hasattr(mosaic_gpu(), "store"):
        mosaic_gpu().store(ref, value, optimized=False)
    else:
        ref[...] = value


@dataclass(frozen=True, kw_only=True)
class RowTile:
    """Loads, broadcasts and casts of tiles of `rows` x `columns`, in float32.

    Attributes:
        rows: Rows of a tile; a multiple of 128.
        columns: Columns of a tile; at most `MAX_COLUMNS`.
        interpret: Parameters of the interpreter, or None for the device.
    """

    rows: int
    columns: int
    interpret: Any = None

    @property
    def layout(self) -> Any:
        """Layout of a tile: a row per thread, up to four adjacent columns per vector access.

        Pallas names it after the tensor memory of Blackwell GPUs. No such memory is used here: the
        layout is that of registers in which every thread has whole rows.
        """
        return mosaic_gpu().Layout.TCGEN05_TMEM_NATIVE(math.gcd(self.columns, 4))

    @property
    def unpacked_layout(self) -> Any:
        """The same rows with columns one by one, for masking or reducing single columns."""
        return mosaic_gpu().Layout.TCGEN05_TMEM_NATIVE(1)

    def load(self, ref: Any, *index: Any) -> Array:
        """Load a tile `(rows, columns)`."""
        return self._load(ref, index, self.layout)

    def load_row(self, ref: Any, *index: Any) -> Array:
        """Load a vector `(columns,)` that every thread holds."""
        return self._load(ref, index, self.layout.reduce(0))

    def load_column(self, ref: Any, *index: Any) -> Array:
        """Load a vector `(rows,)`, one element per thread and row."""
        return self._load(ref, index, self.layout.reduce(1))

    def broadcast_row(self, row: Array) -> Array:
        """Broadcast `(columns,)` to a tile."""
        return self.to_layout(
            lax.broadcast_in_dim(row, (self.rows, self.columns), (1,)), self.layout
        )

    def broadcast_column(self, column: Array) -> Array:
        """Broadcast `(rows,)` to a tile."""
        return self.to_layout(
            lax.broadcast_in_dim(column, (self.rows, self.columns), (0,)), self.layout
        )

    def full(self, value: float) -> Array:
        """Return a tile filled with `value`."""
        full = jnp.full((self.rows, self.columns), value, jnp.float32)
        return self.to_layout(full, self.layout)

    def full_column(self, value: float) -> Array:
        """Return a vector `(rows,)` filled with `value`."""
        return self.to_layout(jnp.full((self.rows,), value, jnp.float32), self.layout.reduce(1))

    def to_layout(self, x: Array, layout: Any) -> Array:
        """Return `x` in another layout."""
        return mosaic_gpu().layout_cast(x, layout) if self.interpret is None else x

    def _load(self, ref: Any, index: tuple[Any, ...], layout: Any) -> Array:
        x = load(ref.at[index], layout) if self.interpret is None else ref[index]
        return x.astype(jnp.float32)


def tile_start(tile: Any, tile_rows: int, num_rows: int) -> Any:
    """Return the first row of tile number `tile`; the last tile is moved up to end with the data.

    Rows in which the last two tiles overlap are computed twice with equal results, so no thread
    needs a mask. There must be at least `tile_rows` rows.
    """
    return jnp.minimum(tile * tile_rows, num_rows - tile_rows)
