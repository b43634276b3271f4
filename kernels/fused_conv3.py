"""Blocks of three 3x3 convolutions on tensor cores, without intermediate results in device memory.

A program owns a strip of the image and goes through its rows from top to bottom, with a warpgroup
for each convolution. An input row is a matmul operand as it is: `(columns, C)` times the taps of
one kernel column side by side, `(C, 3C)`, are its contributions to three output rows, those below,
at and above it. Three such products, of the row and of the row shifted by a pixel to either side,
are added. What later rows have to complete is carried in registers. A completed row is activated
and passed on to the next warpgroup. Only the input and the output of the block are in device
memory, and in shared memory there are the weights and one row for each convolution.

Every convolution is padded with zeros outside of the image. Strips lie inside of the image; columns
near the left or the right edge of a strip are wrong, unless that edge is the image's, and are not
stored. The first two output rows of a convolution are incomplete, and are not passed on.

Operands in float32 must lie in tiled shared memory, which cannot be sliced at a pixel: the shifted
rows are copied there. In bfloat16 they are operands in registers.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import smem, tuning
from .row_layout import make_kernel, mosaic_gpu, pallas, store
from .smem import COLUMNS
from .tensor_cores import Product, full_acc, load_acc, matmul, operand_smem, padded_channels

NUM_CONVS = 3
ROW_HALO = 3  # rows read above and below the output, one for each convolution
COL_HALO = 4  # columns per side that are not stored: 3 are needed, 4 leave a multiple of 8
CONFIG_SPACE = {"rows": (0, 8, 16, 32, 64)}  # of a strip, without the halo; 0: `balanced_rows`
MIN_ROWS = 8  # of a strip: fewer are mostly halo

Sums = tuple[Array, Array]  # of a convolution's next output row, and of the one after it


@dataclass(frozen=True, kw_only=True)
class Refs:
    """Memory of a program: operands and result in device memory, the rest in shared memory.

    Attributes:
        u: Input `(N, h, w, C)`.
        w: Kernels of the convolutions by kernel column, `(3, 3, 3C, C)` (`_stack_weights`).
        b: Biases `(3, C)`, float32.
        gate_w: Kernel of the gate, transposed `(C, C)`.
        gate_b: Bias of the gate `(C,)`, float32.
        mask: 1 for valid pixels `(h, w)`, float32.
        y: Output `(N, h, w, C)`.
        w_smem: Copy of `w`.
        row_smem: Input row of each convolution `(3, COLUMNS + 2, C + padding)`; its first and last
            pixels stay zero.
        out_smem: Output row `(COLUMNS, C)`, from which the valid columns are stored.
        weights_barrier: Completion of the copies of the weights.
        full_barrier: An input row of the second or third convolution has been written.
        empty_barrier: It has been read.
        gate_w_smem: Copy of `gate_w`.
        lhs_smem: In float32, the shifted rows of each convolution `(3, 3, COLUMNS, C)`.
    """

    u: Any
    w: Any
    b: Any = None
    gate_w: Any = None
    gate_b: Any = None
    mask: Any = None
    y: Any
    w_smem: Any
    row_smem: Any
    out_smem: Any
    weights_barrier: Any
    full_barrier: Any
    empty_barrier: Any
    gate_w_smem: Any = None
    lhs_smem: Any = None


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A program's part of the image.

    Attributes:
        refs: Memory.
        n: Image.
        top: First output row.
        left: First output column.
        rows: Output rows.
        load_left: First column, halo included.
        channels: Channels, padded.
        interpret: Parameters of the interpreter, or None for the device.
    """

    refs: Refs
    n: Any
    top: Any
    left: Any
    rows: int
    load_left: Any
    channels: int
    interpret: Any

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of a row."""
        return (COLUMNS, self.channels)

    def load_row(self, row: Any) -> Array:
        """Load row `row` of the image, or the nearest one: `(COLUMNS, C)`."""
        index = self.n, self._clip(row), self._columns(), slice(None)
        return self.load(self.refs.u, *index)

    def zero_outside(self, values: Array, row: Any) -> Array:
        """Return values of row `row` of the image, zero where it is outside or masked."""
        is_inside = (row >= 0) & (row < self.refs.u.shape[1])
        is_valid = lax.broadcast_in_dim(is_inside.astype(jnp.float32), self.shape, ())
        if self.refs.mask is not None:
            mask = self.load(self.refs.mask, self._clip(row), self._columns(), axis=1)
            is_valid = is_valid * lax.broadcast_in_dim(mask, self.shape, (0,))
        return jnp.where(is_valid > 0, values.astype(jnp.float32), self.zeros())

    def store_row(self, row: Any, values: Array) -> None:
        """Store the valid columns of output row `row`."""
        refs, columns = self.refs, COLUMNS - 2 * COL_HALO
        store(refs.out_smem, values.astype(refs.y.dtype))
        mosaic_gpu().commit_smem()
        valid = refs.out_smem[pallas().ds(self.left - self.load_left, columns), :]
        refs.y[self.n, row, pallas().ds(self.left, columns), :] = valid

    def zeros(self) -> Array:
        """Return a row of zeros, float32."""
        return full_acc(self.shape, 0, interpret=self.interpret)

    def load(self, ref: Any, *index: Any, axis: int | None = None) -> Array:
        """Load a row, or a vector that lacks its `axis`."""
        return load_acc(ref, *index, axis=axis, interpret=self.interpret)

    def broadcast_channels(self, ref: Any, *index: Any) -> Array:
        """Load a vector `(C,)` and broadcast it to all pixels of a row."""
        return lax.broadcast_in_dim(self.load(ref, *index, axis=0), self.shape, (1,))

    def _columns(self) -> Any:
        return pallas().ds(self.load_left, COLUMNS)

    def _clip(self, row: Any) -> Any:
        return jnp.clip(row, 0, self.refs.u.shape[1] - 1)


@dataclass(frozen=True, kw_only=True)
class Conv:
    """One convolution of a strip, computed by one warpgroup.

    Attributes:
        index: 0, 1 or 2.
        strip: The strip.
        activate: Activation between convolutions.
        epilogue: Output of the block from the convolutions' output, the block's input and the gate
            (or None), all float32 `(COLUMNS, C)`.
    """

    index: int
    strip: Strip
    activate: Callable[[Array], Array]
    epilogue: Callable[[Array, Array, Any], Array]

    def run(self) -> None:
        """Go through the input rows; the first convolution loads one ahead."""
        strip = self.strip
        self._zero_edges()
        mosaic_gpu().barrier_wait(strip.refs.weights_barrier)
        row = strip.load_row(self._image_row(0)) if self.index == 0 else ()
        num_rows = strip.rows + 2 * (NUM_CONVS - self.index)
        lax.fori_loop(0, num_rows, self._step, (row, (strip.zeros(), strip.zeros())))
        if self.index < NUM_CONVS - 1:
            mosaic_gpu().barrier_wait(strip.refs.empty_barrier.at[self.index])  # the last row

    def _step(self, i: Any, carry: Any) -> Any:
        """Take input row `i`; complete the output row above it."""
        row, sums = carry
        output_row = self._image_row(i) - 1
        is_last = self.index == NUM_CONVS - 1
        u = self.strip.load_row(output_row) if is_last else None  # early, as it takes time
        if self.index == 0:
            self._write_row(0, row, self._image_row(i))
            mosaic_gpu().commit_smem()  # all warps have written their part of the row
            row = self.strip.load_row(self._image_row(i + 1))
        else:
            mosaic_gpu().barrier_wait(self.strip.refs.full_barrier.at[self.index - 1])
        output, sums = self._add_row(sums)

        @pallas().when(i >= 2)
        def _() -> None:
            if is_last:
                self._store_row(output, u, output_row)
            else:
                self._pass_on(i, self.activate(output), output_row)

        return row, sums

    def _add_row(self, sums: Sums) -> tuple[Array, Sums]:
        """Return the completed output row, float32 with the bias, and what is left to complete."""
        refs, channels = self.strip.refs, self.strip.channels
        # the left tap of pixel i is pixel i - 1, which is at i in the row with a zero in front
        shifted = [self._lhs(self._load_shifted(start), start) for start in range(3)]
        if self.index > 0:
            mosaic_gpu().barrier_arrive(refs.empty_barrier.at[self.index - 1])
        products = matmul(
            [
                Product(lhs, refs.w_smem.at[self.index, column])
                for column, lhs in enumerate(shifted)
            ],
            (COLUMNS, 3 * channels),
            self.strip.interpret,
        )
        below, center, above = (
            lax.slice(products, (0, start), (COLUMNS, start + channels))
            for start in range(0, 3 * channels, channels)
        )
        center_sum, above_sum = sums
        output = above_sum + above
        if refs.b is not None:
            output = output + self.strip.broadcast_channels(refs.b, self.index, slice(None))
        return output, (below, center_sum + center)

    def _pass_on(self, i: Any, row: Array, image_row: Any) -> None:
        """Write an input row of the next convolution, when it has read the one before."""
        refs = self.strip.refs
        wait = mosaic_gpu().barrier_wait
        pallas().when(i > 2)(lambda: wait(refs.empty_barrier.at[self.index]))
        self._write_row(self.index + 1, row, image_row)
        mosaic_gpu().barrier_arrive(refs.full_barrier.at[self.index])

    def _store_row(self, f: Array, u: Any, image_row: Any) -> None:
        values = self.epilogue(f, u.astype(jnp.float32), self._gate(f))
        self.strip.store_row(image_row, values)

    def _gate(self, f: Array) -> Array | None:
        """Return `W f + b`; None if the block has no gate."""
        refs = self.strip.refs
        if refs.gate_w_smem is None:
            return None
        product = Product(self._lhs(f.astype(refs.u.dtype), 0), refs.gate_w_smem)
        gate = matmul([product], self.strip.shape, self.strip.interpret)
        return gate + self.strip.broadcast_channels(refs.gate_b, slice(None))

    def _lhs(self, row: Array, slot: int) -> Any:
        """Return a row as a left operand: in registers, or in float32 in shared memory."""
        lhs_smem = self.strip.refs.lhs_smem
        if lhs_smem is None:
            return row
        store(lhs_smem.at[self.index, slot], row)
        return lhs_smem.at[self.index, slot]

    def _image_row(self, i: Any) -> Any:
        """Return the row of the image that input row `i` is."""
        return self.strip.top - NUM_CONVS + self.index + i

    # --- rows in shared memory ---

    def _zero_edges(self) -> None:
        """Zero what is shifted in at the edges of the rows that this warpgroup writes.

        A store has `COLUMNS` pixels, so two that overlap zero the first one and the last.
        """
        zeros = self._cast(self.strip.zeros())
        rows = {0: (0, 1), 1: (2,), 2: ()}[self.index]  # the first convolution writes its own, too
        for conv, start in itertools.product(rows, (0, 2)):
            store(self._row_slice(conv, start), zeros)
        mosaic_gpu().commit_smem()

    def _write_row(self, conv: int, row: Array, image_row: Any) -> None:
        store(self._row_slice(conv, 1), self._cast(self.strip.zero_outside(row, image_row)))

    def _load_shifted(self, start: int) -> Array:
        index = self.index, pallas().ds(start, COLUMNS), slice(0, self.strip.channels)
        return self.strip.load(self.strip.refs.row_smem, *index)

    def _row_slice(self, conv: int, start: int) -> Any:
        columns = pallas().ds(start, COLUMNS)
        return self.strip.refs.row_smem.at[conv, columns, : self.strip.channels]

    def _cast(self, row: Array) -> Array:
        return row.astype(self.strip.refs.u.dtype)


# --- blocks of three convolutions ---


def balanced_rows(n: int, h: int, w: int, num_sms: int) -> int:
    """Return the rows of a strip, without the halo, with which the busiest SM computes the fewest.

    With 16 rows, 339x510 is 220 programs, two waves on 132 SMs of which the second is two thirds
    empty; with 27 rows it is 130 programs, one wave.

    Args:
        n: Images.
        h: Height of an image.
        w: Width of an image.
        num_sms: SMs of the device.
    """
    columns = n * -(-w // (COLUMNS - 2 * COL_HALO))

    def computed_rows(rows: int) -> int:
        waves = -(-columns * -(-h // rows) // num_sms)
        return waves * (rows + 2 * ROW_HALO + NUM_CONVS - 1)  # until the last warpgroup ends

    return min(range(min(MIN_ROWS, h), h + 1), key=computed_rows)


@dataclass(frozen=True, kw_only=True)
class FusedConv3:
    """A block of three 3x3 convolutions as one kernel.

    Attributes:
        name: Name of the kernel.
        rows: Output rows of a strip; 0 for `balanced_rows`.
        activate: Activation between convolutions, applied to float32 `(COLUMNS, C)`.
        epilogue: Output of the block from the convolutions' output, the block's input and the gate
            (or None), all float32 `(COLUMNS, C)`.
        interpret: Parameters of the interpreter, or None for the device.
    """

    name: str
    rows: int
    activate: Callable[[Array], Array]
    epilogue: Callable[[Array, Array, Any], Array]
    interpret: Any = None

    def __call__(
        self,
        u: Array,
        kernels: Sequence[Array],
        biases: Sequence[Array] = (),
        gate: tuple[Array, Array] | None = None,
        mask: Array | None = None,
    ) -> Array:
        """Return the output of the block, of the shape and dtype of `u`.

        Args:
            u: Input `(N, h, w, C)`.
            kernels: Kernels of the convolutions `(3, 3, C, C)`.
            biases: Biases of the convolutions `(C,)`, or none.
            gate: Kernel `(C, C)` and bias `(C,)` of the gate.
            mask: 1 for valid pixels `(h, w)`; None if all are.
        """
        n, h, w, channels = u.shape
        if not self.rows:
            rows = balanced_rows(n, h, max(w, COLUMNS), tuning.num_sms())
            return replace(self, rows=rows)(u, kernels, biases, gate, mask)
        pad_channels, pad_columns = padded_channels(channels) - channels, max(0, COLUMNS - w)
        operands = {
            "u": jnp.pad(u, ((0, 0), (0, 0), (0, pad_columns), (0, pad_channels))),
            "w": _stack_weights(kernels, pad_channels),
        }
        if biases:
            operands["b"] = jnp.pad(jnp.stack(biases), ((0, 0), (0, pad_channels))).astype(
                jnp.float32
            )
        if gate is not None:
            operands["gate_w"] = jnp.pad(gate[0].T, ((0, pad_channels), (0, pad_channels)))
            operands["gate_b"] = jnp.pad(gate[1], (0, pad_channels)).astype(jnp.float32)
        # Padded columns need a mask: a convolution writes nonzero values there (its bias, and what
        # its taps reach of the image), and the next one must read zeros.
        if mask is not None or pad_columns:
            is_valid = jnp.ones((h, w), jnp.float32) if mask is None else mask.astype(jnp.float32)
            operands["mask"] = jnp.pad(is_valid, ((0, 0), (0, pad_columns)))
        return self._run(operands, w)[:, :, :w, :channels]

    def _run(self, operands: dict[str, Array], w: int) -> Array:
        u = operands["u"]
        n, h, _, channels = u.shape
        strips = (n, pallas().cdiv(w, COLUMNS - 2 * COL_HALO), pallas().cdiv(h, self.rows))
        smem_types = self._smem_types(channels, u.dtype, "gate_w" in operands)
        names = [*operands, "y", *smem_types]  # order in which Pallas passes them: y is the output
        num_matmuls = 27 + ("gate_w" in operands)  # taps of three convolutions, and the gate
        run = make_kernel(
            lambda *refs: self._compute(Refs(**dict(zip(names, refs, strict=True))), strips),
            list(operands.values()),
            flops=2 * num_matmuls * u.size * channels,
            out_type=jax.ShapeDtypeStruct(u.shape, u.dtype),
            scratch_types=list(smem_types.values()),
            grid=(math.prod(strips),),
            grid_names=("program",),
            num_threads=NUM_CONVS,
            thread_name="conv",
            kernel_name=self.name,
            interpret=self.interpret,
        )
        return run(*operands.values())

    def _smem_types(self, channels: int, dtype: Any, is_gated: bool) -> dict[str, Any]:
        """Return the shared memory; only operands of matmuls are tiled and swizzled."""
        shapes = smem.smem_shapes(channels, dtype, is_gated)
        types = {
            name: mosaic_gpu().SMEM(shape, dtype)
            if name in ("row_smem", "out_smem")
            else operand_smem(shape, dtype)
            for name, shape in shapes.items()
        }
        barrier = mosaic_gpu().Barrier
        return {
            **types,
            "weights_barrier": barrier(num_arrivals=3 * NUM_CONVS + is_gated),
            "full_barrier": barrier(num_barriers=NUM_CONVS - 1),
            "empty_barrier": barrier(num_barriers=NUM_CONVS - 1),
        }

    def _compute(self, refs: Refs, strips: tuple[int, int, int]) -> None:
        """Compute the strip of a program, each convolution in its warpgroup."""
        warpgroup = lax.axis_index("conv")
        pallas().when(warpgroup == 0)(lambda: self._copy_weights(refs))
        strip = self._strip(refs, strips)
        for index in range(NUM_CONVS):
            conv = Conv(index=index, strip=strip, activate=self.activate, epilogue=self.epilogue)
            pallas().when(warpgroup == index)(conv.run)

    def _copy_weights(self, refs: Refs) -> None:
        copy = mosaic_gpu().copy_gmem_to_smem
        for conv, column in itertools.product(range(NUM_CONVS), range(3)):
            copy(refs.w.at[conv, column], refs.w_smem.at[conv, column], refs.weights_barrier)
        if refs.gate_w is not None:
            copy(refs.gate_w, refs.gate_w_smem, refs.weights_barrier)

    def _strip(self, refs: Refs, strips: tuple[int, int, int]) -> Strip:
        """Return the strip of a program.

        Strips are counted by rows first, then by columns, then by images. A last strip that is not
        full is moved up and left to end with the image, so that no store needs a mask; a pixel that
        two strips store gets the same value from both.
        """
        _, h, width, channels = refs.u.shape
        rows, columns = min(self.rows, h), COLUMNS - 2 * COL_HALO
        rest, row_strip = jnp.divmod(lax.axis_index("program"), strips[2])
        n, column_strip = jnp.divmod(rest, strips[1])
        left = jnp.minimum(column_strip * columns, width - columns)
        return Strip(
            refs=refs,
            n=n,
            top=jnp.minimum(row_strip * rows, h - rows),
            left=left,
            rows=rows,
            load_left=jnp.clip(left - COL_HALO, 0, width - COLUMNS),
            channels=channels,
            interpret=self.interpret,
        )


def _stack_weights(kernels: Sequence[Array], pad_channels: int) -> Array:
    """Return the kernels as `(3, 3, 3C, C)`: by convolution and kernel column, taps from the top.

    The input channels are last, because right operands of wgmma are stored transposed.
    """
    weights = jnp.pad(jnp.stack(kernels), ((0, 0),) * 3 + ((0, pad_channels),) * 2)
    channels = weights.shape[-1]
    return weights.transpose(0, 2, 1, 4, 3).reshape(3, 3, 3 * channels, channels)
