"""Blocks of three 3x3 convolutions fused by line buffers on tensor cores: tile, row order, block.

A program owns a tile of the image and loops over its rows. It keeps the last three input rows of
every convolution in shared memory, computes the middle row of the output from them, and passes it
on to the next convolution. Only the input and the output of the block are in device memory.

Every convolution is padded with zeros outside of the image. Tiles lie inside of the image; what is
computed near the edge of a tile is wrong, unless that edge is the image's, and is not stored.

A row of a convolution is three matmuls, one for each row of the 3x3 kernel: an input row of shape
`(columns, C)` times the three taps of a kernel row side by side, `(C, 3C)`. The products of the
left and the right tap belong to neighbouring pixels; they go through shared memory and are read
back shifted by one pixel. So all operands of wgmma are whole rows in shared memory. Operands that
are shifted by a pixel instead are not possible, because tiled and swizzled memory cannot be sliced
at a pixel; three shifted copies of every row would not fit into shared memory (324 KiB for 32
channels in float32, of 227 KiB).

Right operands are stored transposed, `(..., 3C, C)` instead of `(..., C, 3C)` (`tensor_cores`), in
bfloat16 too, to have one layout.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import smem, tuning
from .row_layout import make_kernel, mosaic_gpu, pallas, store
from .tensor_cores import Product, full_acc, load_acc, matmul, operand_smem, padded_channels

ROW_HALO = 3  # rows read above and below the output, one for each convolution
COL_HALO = 4  # columns per side that are not stored: 3 are needed, 4 leave a multiple of 8
CONFIG_SPACE = {
    "columns": smem.TILE_COLUMNS,  # of a tile, halo included
    "rows": (0, 16, 8, 32, 64),  # of a tile, without the halo; 0: `balanced_rows`
}
MIN_ROWS = 8  # of a tile: fewer are mostly halo


@dataclass(frozen=True, kw_only=True)
class Refs:
    """Memory of a program: operands and result in device memory, the rest in shared memory.

    Attributes:
        u: Input `(N, h, w, C)`.
        w: Kernels of the three convolutions `(9, 3C, C)` (`_stack_weights`).
        b: Biases `(3, C)`, float32.
        gate_w: Kernel of the gate, transposed `(C, C)`.
        gate_b: Bias of the gate `(C,)`, float32.
        mask: 1 for valid pixels `(h, w)`, float32.
        y: Output `(N, h, w, C)`.
        w_smem: Copy of `w`.
        line_buffer: Last three input rows of each convolution `(3, 3, columns, C)`.
        shift_smem: Products to be shifted by a pixel `(columns + 2, C + BANK_PAD)`, float32; the
            first and the last row stay zero.
        out_smem: Output row `(columns, C)`, from which the valid columns are stored.
        barrier: Completion of asynchronous copies.
        gate_w_smem: Copy of `gate_w`.
        f_smem: Convolutions' output row `(columns, C)`, operand of the gate.
    """

    u: Any
    w: Any
    b: Any = None
    gate_w: Any = None
    gate_b: Any = None
    mask: Any = None
    y: Any
    w_smem: Any
    line_buffer: Any
    shift_smem: Any
    out_smem: Any
    barrier: Any
    gate_w_smem: Any = None
    f_smem: Any = None


@dataclass(frozen=True, kw_only=True)
class ConvTile:
    """Input tile of image `n`: `num_rows` rows from row `top`, `columns` pixels from column `left`.

    Rows are numbered from the first of the tile. Rows outside of the tile are zero.
    """

    refs: Refs
    n: Any
    top: Any
    left: Any
    num_rows: int
    columns: int
    channels: int
    interpret: Any

    def initialize(self) -> None:
        """Copy the weights to shared memory and zero the line buffers."""
        refs = self.refs
        for source, target in ((refs.w, refs.w_smem), (refs.gate_w, refs.gate_w_smem)):
            if source is not None:
                mosaic_gpu().copy_gmem_to_smem(source, target, refs.barrier)
                mosaic_gpu().barrier_wait(refs.barrier)
        zeros = self._zeros()
        for conv in range(3):
            for slot in range(3):
                store(refs.line_buffer.at[conv, slot], zeros.astype(refs.u.dtype))
        # Two overlapping stores, as a store has `columns` rows: they zero the first row and the
        # last, which later stores leave as they are.
        for start in (0, 2):
            store(refs.shift_smem.at[pallas().ds(start, self.columns), : self.channels], zeros)

    def load_row(self, k: Any) -> Array:
        """Load input row `k`, clamped to the tile: `(columns, C)`."""
        return self._load(
            self.refs.u, self.n, self._image_row(k), self._column_slice(), slice(None)
        )

    def write_row(self, conv: int, k: Any, row: Array) -> None:
        """Write input row `k` of a convolution to its line buffer, with invalid pixels zeroed."""
        if self.refs.mask is not None:
            mask = self._load(self.refs.mask, self._image_row(k), self._column_slice(), axis=1)
            is_valid = lax.broadcast_in_dim(mask, (self.columns, self.channels), (0,))
            row = jnp.where(is_valid > 0, row.astype(jnp.float32), self._zeros())
        store(self.refs.line_buffer.at[conv, _slot(k)], row.astype(self.refs.u.dtype))

    def write_zero_row(self, conv: int) -> None:
        """Write the row below the last one, which is zero, to the line buffer of a convolution."""
        row = self._zeros().astype(self.refs.u.dtype)
        store(self.refs.line_buffer.at[conv, _slot(self.num_rows)], row)

    def conv_row(self, conv: int, k: Any) -> Array:
        """Return row `k` of a convolution from its last three input rows.

        The result is float32 `(columns, C)`, bias included. The row above the first is zero since
        `initialize`: its slot is first written by row 2, after row 0 has been computed. The row
        below the last is written by `write_zero_row`.
        """
        refs, channels = self.refs, self.channels
        operands = [
            Product(
                refs.line_buffer.at[conv, _slot(k + kernel_row - 1)],
                refs.w_smem.at[3 * conv + kernel_row],
            )
            for kernel_row in range(3)
        ]
        products = matmul(operands, (self.columns, 3 * channels), self.interpret)
        left, center, right = (
            lax.slice(
                products,
                (0, kernel_column * channels),
                (self.columns, (kernel_column + 1) * channels),
            )
            for kernel_column in range(3)
        )
        # the left tap of pixel i is the product of pixel i - 1, the right tap that of i + 1
        center = center + self._shift_columns(left, 0) + self._shift_columns(right, 2)
        return (
            center
            if refs.b is None
            else center + self._broadcast_channels(refs.b, conv, slice(None))
        )

    def gate_row(self, f: Array) -> Array | None:
        """Return `W f + b` of a row `f (columns, C)`; None if the block has no gate."""
        refs = self.refs
        if refs.gate_w_smem is None:
            return None
        store(refs.f_smem, f.astype(refs.u.dtype))
        operands = [Product(refs.f_smem, refs.gate_w_smem)]
        gate = matmul(operands, (self.columns, self.channels), self.interpret)
        return gate + self._broadcast_channels(refs.gate_b, slice(None))

    def _shift_columns(self, products: Array, start: int) -> Array:
        """Return products shifted by one pixel: to the right for `start` 0, to the left for 2.

        They are stored from row 1 of `shift_smem` on; the pixel that is shifted in is a zero row.
        """
        smem = self.refs.shift_smem
        store(smem.at[pallas().ds(1, self.columns), : self.channels], products)
        return self._load(smem, pallas().ds(start, self.columns), slice(0, self.channels))

    def _broadcast_channels(self, ref: Any, *index: Any) -> Array:
        """Load a vector `(C,)` and broadcast it to all pixels: `(columns, C)`."""
        values = self._load(ref, *index, axis=0)
        return lax.broadcast_in_dim(values, (self.columns, self.channels), (1,))

    def _load(self, ref: Any, *index: Any, axis: int | None = None) -> Array:
        return load_acc(ref, *index, axis=axis, interpret=self.interpret)

    def _zeros(self) -> Array:
        return full_acc((self.columns, self.channels), 0, interpret=self.interpret)

    def _image_row(self, k: Any) -> Any:
        return self.top + jnp.clip(k, 0, self.num_rows - 1)

    def _column_slice(self) -> Any:
        return pallas().ds(self.left, self.columns)


def _slot(k: Any) -> Any:
    """Return the slot of row `k` (at least −1) in a line buffer."""
    return lax.rem(k + 3, 3)


# --- order of rows ---


@dataclass(frozen=True, kw_only=True)
class RowLoop:
    """Loop over the rows of a tile in which each convolution is one row behind the one before.

    Attributes:
        tile: Input tile, halo included.
        top: First output row in the image.
        left: First output column in the image.
        rows: Output rows.
        columns: Output columns.
        activate: Activation between convolutions.
        epilogue: Output of the block from the convolutions' output, the block's input and the gate
            (or None), all float32 `(columns, C)`.
    """

    tile: ConvTile
    top: Any
    left: Any
    rows: int
    columns: int
    activate: Callable[[Array], Array]
    epilogue: Callable[[Array, Array, Any], Array]

    def run(self) -> None:
        """Compute all rows; a row is loaded one iteration ahead."""
        self.tile.initialize()
        lax.fori_loop(0, self.tile.num_rows + ROW_HALO, self._step, self.tile.load_row(0))

    def _step(self, i: Any, row: Array) -> Array:
        """Store input row `i`; compute row `i − 1` of convolution 0, `i − 2` of 1 and `i − 3` of
        2.
        """
        tile = self.tile
        pallas().when(i < tile.num_rows)(lambda: tile.write_row(0, i, row))
        pallas().when(i == tile.num_rows)(lambda: tile.write_zero_row(0))
        next_row = tile.load_row(i + 1)
        for conv in (0, 1):
            self._compute_row(conv, i - conv - 1)
        pallas().when(self._is_needed(i - ROW_HALO, 0))(lambda: self._store_row(i - ROW_HALO))
        return next_row

    def _compute_row(self, conv: int, k: Any) -> None:
        """Compute row `k` of a convolution into the line buffer of the next."""
        tile, next_conv = self.tile, conv + 1

        @pallas().when(self._is_needed(k, ROW_HALO - next_conv))
        def _() -> None:
            tile.write_row(next_conv, k, self.activate(tile.conv_row(conv, k)))

        pallas().when(k == tile.num_rows)(lambda: tile.write_zero_row(next_conv))

    def _store_row(self, k: Any) -> None:
        """Compute and store output row `k`."""
        tile, refs = self.tile, self.tile.refs
        f = tile.conv_row(2, k)
        u = tile.load_row(k).astype(jnp.float32)
        row = self.epilogue(f, u, tile.gate_row(f))
        store(refs.out_smem, row.astype(refs.y.dtype))
        valid = refs.out_smem[pallas().ds(self.left - tile.left, self.columns), :]
        refs.y[tile.n, tile.top + k, pallas().ds(self.left, self.columns), :] = valid

    def _is_needed(self, k: Any, halo: int) -> Any:
        """Return whether row `k` is in the tile and at most `halo` rows from the output."""
        row = self.tile.top + k
        is_near = (row >= self.top - halo) & (row < self.top + self.rows + halo)
        return (k >= 0) & (k < self.tile.num_rows) & is_near


# --- blocks of three convolutions ---


def balanced_rows(n: int, h: int, w: int, columns: int, num_sms: int) -> int:
    """Return the rows of a tile, without the halo, with which the busiest SM computes the fewest.

    A program occupies an SM by itself. With 16 rows, 339x510 is 220 programs, two waves on 132 SMs
    of which the second is two thirds empty; with 27 rows it is 130 programs, one wave.

    Args:
        n: Images.
        h: Height of an image.
        w: Width of an image.
        columns: Columns of a tile, halo included.
        num_sms: SMs of the device.
    """
    strips = n * -(-w // (columns - 2 * COL_HALO))

    def computed_rows(rows: int) -> int:
        waves = -(-strips * -(-h // rows) // num_sms)
        return waves * (rows + 2 * ROW_HALO + ROW_HALO)  # the halo, and the start of the pipeline

    return min(range(min(MIN_ROWS, h), h + 1), key=computed_rows)


@dataclass(frozen=True, kw_only=True)
class FusedConv3:
    """A block of three 3x3 convolutions as one kernel.

    Attributes:
        name: Name of the kernel.
        columns: Columns of a tile, halo included.
        rows: Output rows of a tile; 0 for `balanced_rows`.
        activate: Activation between convolutions, applied to float32 `(columns, C)`.
        epilogue: Output of the block from the convolutions' output, the block's input and the gate
            (or None), all float32 `(columns, C)`.
        interpret: Parameters of the interpreter, or None for the device.
    """

    name: str
    columns: int
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
            rows = balanced_rows(n, h, max(w, self.columns), self.columns, tuning.num_sms())
            return replace(self, rows=rows)(u, kernels, biases, gate, mask)
        pad_channels, pad_columns = (
            padded_channels(channels) - channels,
            max(0, self.columns - w),
        )
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
        grid = (n, pallas().cdiv(w, self.columns - 2 * COL_HALO), pallas().cdiv(h, self.rows))
        smem_types = self._smem_types(channels, u.dtype, "gate_w" in operands)
        names = [*operands, "y", *smem_types]  # order in which Pallas passes them: y is the output
        num_matmuls = 27 + ("gate_w" in operands)  # taps of three convolutions, and the gate
        run = make_kernel(
            lambda *refs: self._compute_tile(Refs(**dict(zip(names, refs, strict=True))), grid),
            list(operands.values()),
            flops=2 * num_matmuls * u.size * channels,
            out_type=jax.ShapeDtypeStruct(u.shape, u.dtype),
            scratch_types=list(smem_types.values()),
            grid=(math.prod(grid),),
            grid_names=("program",),
            kernel_name=self.name,
            interpret=self.interpret,
        )
        return run(*operands.values())

    def _smem_types(self, channels: int, dtype: Any, is_gated: bool) -> dict[str, Any]:
        """Return the shared-memory buffers.

        `out_smem` and `shift_smem` are no operands, and are sliced at single pixels, so they are
        neither tiled nor swizzled.
        """
        shapes = smem.smem_shapes(self.columns, channels, is_gated)
        types = {
            name: operand_smem(shape, dtype)
            for name, shape in shapes.items()
            if name not in ("out_smem", "shift_smem")
        }
        types["shift_smem"] = mosaic_gpu().SMEM(shapes["shift_smem"], jnp.float32)
        types["out_smem"] = mosaic_gpu().SMEM(shapes["out_smem"], dtype)
        return {**types, "barrier": mosaic_gpu().Barrier()}

    def _compute_tile(self, refs: Refs, grid: tuple[int, int, int]) -> None:
        """Compute one tile: its output rows, and a halo of rows above and below.

        The program's index counts row tiles first, then column tiles, then images. A last tile that
        is not full is moved up and left to end with the image, so that no store needs a mask; a
        pixel that two tiles store gets the same value from both.
        """
        _, h, width, channels = refs.u.shape
        columns, rows = self.columns - 2 * COL_HALO, min(self.rows, h)
        num_rows = min(rows + 2 * ROW_HALO, h)
        rest, row_tile = jnp.divmod(lax.axis_index("program"), grid[2])
        n, column_tile = jnp.divmod(rest, grid[1])
        top = jnp.minimum(row_tile * rows, h - rows)
        left = jnp.minimum(column_tile * columns, width - columns)
        RowLoop(
            tile=ConvTile(
                refs=refs,
                n=n,
                top=jnp.clip(top - ROW_HALO, 0, h - num_rows),
                left=jnp.clip(left - COL_HALO, 0, width - self.columns),
                num_rows=num_rows,
                columns=self.columns,
                channels=channels,
                interpret=self.interpret,
            ),
            top=top,
            left=left,
            rows=rows,
            columns=columns,
            activate=self.activate,
            epilogue=self.epilogue,
        ).run()


def _stack_weights(kernels: Sequence[Array], pad_channels: int) -> Array:
    """Return the kernels as `(9, 3C, C)`: by convolution and row, taps from left to right.

    The input channels are last, because right operands of wgmma are stored transposed.
    """
    weights = jnp.pad(jnp.stack(kernels), ((0, 0),) * 3 + ((0, pad_channels),) * 2)
    channels = weights.shape[-1]
    return weights.mT.reshape(9, 3 * channels, channels)
