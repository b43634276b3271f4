"""Loop of the attention kernels over tiles of scores: windows, and blocks of columns in each.

A program keeps `TILE` rows of one head and goes through blocks of `TILE` columns, window by window.
Rows are queries and columns keys; for the gradients of keys and values it is the reverse. The
position bias is the same for all windows: it is loaded once, and stays in shared memory. The next
block is copied while one is computed. A program is one warpgroup with a fraction of an SM's shared
memory, so that several share an SM: one computes exponentials while another multiplies.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array, lax

from .row_layout import make_kernel, mosaic_gpu, pallas, store
from .tensor_cores import (
    BARRIER_BYTES,
    MAX_SMEM_BYTES,
    Product,
    full_acc,
    load_acc,
    matmul,
    operand_smem,
    swizzle_bytes,
)

TILE = 64  # rows and columns of a tile of scores; wgmma's least number of rows
NUM_SLOTS = 2  # of every operand in shared memory: one is read while the other is filled
# "row": `(windows, heads, rows, d)`; "column": `(windows, heads, columns, d)`; "transposed":
# `(windows, heads, d, columns)`
OperandLayout = Literal["row", "column", "transposed"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of an attention, and how it is split into programs.

    Attributes:
        windows: Windows of all images.
        heads: Heads.
        rows: Rows of a head's scores, a multiple of `TILE`.
        columns: Their columns, a multiple of `TILE`.
        head_dim: Elements of a row of an operand.
        scale: Factor of `q kᵀ`.
        window_groups: Programs among which the windows are divided.
        column_groups: Programs among which the blocks of columns are divided, equally.
    """

    windows: int
    heads: int
    rows: int
    columns: int
    head_dim: int
    scale: float
    window_groups: int
    column_groups: int = 1

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Programs; those that read the same windows follow each other."""
        return (self.window_groups, self.heads, self.column_groups, self.rows // TILE)

    @property
    def group_windows(self) -> int:
        """Windows of a program; the last group may have fewer, or none."""
        return -(-self.windows // self.window_groups)

    @property
    def group_blocks(self) -> int:
        """Blocks of columns of a program."""
        return self.columns // TILE // self.column_groups

    @property
    def num_scores(self) -> int:
        """Elements of the score matrices of all windows and heads."""
        return self.windows * self.heads * self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A tile of scores.

    Attributes:
        window: Its window.
        head: Its head.
        column_group: Its group of columns.
        block: Its block of columns, counted from the first of the program.
        rows: Slice of its rows.
        columns: Slice of its columns.
        operands: Its operands in shared memory by name: `(TILE, d)`, or `(d, TILE)` if transposed.
    """

    window: Any
    head: Any
    column_group: Any
    block: Any
    rows: Any
    columns: Any
    operands: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TileLoop:
    """Loop of one program.

    Attributes:
        shape: Sizes.
        layouts: Layouts of the operands by name.
        refs: References by name: in device memory the operands, `bias (heads, rows, columns)`, and,
            where there is one, `mask (mask windows, rows, columns)` with `is_masked (mask
            windows,)`, int32, 0 for windows whose mask is 0; in shared memory the buffers and
            barriers of `TileKernel`.
        interpret: Parameters of the interpreter, or None for the device.
    """

    shape: Shape
    layouts: Mapping[str, OperandLayout]
    refs: Mapping[str, Any]
    interpret: Any

    def run(
        self,
        init: Callable[[], Any],
        step: Callable[[Tile, Any], Any],
        finish: Callable[[Tile, Any], None],
    ) -> None:
        """For every window, call `step` for every block of columns, and `finish` with its state."""
        window_group, *_ = self.position
        num_windows = jnp.minimum(
            self.shape.group_windows,
            self.shape.windows - window_group * self.shape.group_windows,
        )
        self._load_bias()
        pallas().when(num_windows > 0)(lambda: self._copy(0, 0, self.layouts))

        def compute_window(i: Any, carry: Any) -> Any:
            state = lax.fori_loop(
                0, self.shape.group_blocks, lambda j, state: compute_block(i, j, state), init()
            )
            finish(self._tile(i, 0), state)
            return carry

        def compute_block(i: Any, j: Any, state: Any) -> Any:
            self._wait(i, j)
            mosaic_gpu().commit_smem()  # all warps have read what the next copies overwrite
            self._copy_next(i, j, num_windows)
            return step(self._tile(i, j), state)

        lax.fori_loop(0, num_windows, compute_window, 0)

    @property
    def position(self) -> tuple[Any, Any, Any, Any]:
        """Window group, head, group of columns and tile of rows of the program."""
        _, heads, column_groups, row_tiles = self.shape.grid
        rest, row_tile = jnp.divmod(lax.axis_index("program"), row_tiles)
        rest, column_group = jnp.divmod(rest, column_groups)
        return *jnp.divmod(rest, heads), column_group, row_tile

    def scores(self, tile: Tile, row: str, column: str) -> Array:
        """Return `scale · row columnᵀ + bias + mask`, float32 `(TILE, TILE)`."""
        scores = self.products(tile, row, column) * self.shape.scale
        scores = scores + self.load(self.refs["bias_smem"], tile.block).astype(jnp.float32)
        if "mask" not in self.refs:
            return scores
        mask_window = lax.rem(tile.window, self.refs["mask"].shape[0])

        def add_mask(scores: Array) -> Array:
            mask = self.load(self.refs["mask"], mask_window, tile.rows, tile.columns)
            return scores + mask.astype(jnp.float32)

        is_masked = self.refs["is_masked"][mask_window] > 0
        return lax.cond(is_masked, add_mask, lambda scores: scores, scores)

    def products(self, tile: Tile, row: str, column: str) -> Array:
        """Return `row columnᵀ`, float32 `(TILE, TILE)`."""
        product = Product(tile.operands[row], tile.operands[column])
        return matmul([product], (TILE, TILE), self.interpret)

    def matmul_columns(self, lhs: Array, buffer: str, tile: Tile, column: str) -> Array:
        """Return `lhs column`, float32 `(TILE, d)`, of scores `lhs (TILE, TILE)`.

        Args:
            lhs: Scores; they become an operand in the shared memory `buffer`.
            buffer: Name of a reference.
            tile: The tile.
            column: Name of an operand of columns; the transposed one is used where there is one.
        """
        ref = self.refs[buffer]
        store(ref, lhs.astype(ref.dtype))
        transposed = tile.operands.get(_transposed_name(column))
        product = (
            Product(ref, tile.operands[column], is_rhs_transposed=False)
            if transposed is None
            else Product(ref, transposed)
        )
        return matmul([product], (TILE, self.shape.head_dim), self.interpret)

    def load(self, ref: Any, *index: Any, axis: int | None = None) -> Array:
        """Load a tile, or a vector that lacks its `axis`."""
        return load_acc(ref, *index, axis=axis, interpret=self.interpret)

    def zeros(self) -> Array:
        """Return a sum of products with operands of columns: `(TILE, d)`."""
        return full_acc((TILE, self.shape.head_dim), 0, interpret=self.interpret)

    # --- copies to shared memory ---

    def _load_bias(self) -> None:
        _, head, _, _ = self.position
        rows, barrier = self.rows(), self.refs["bias_barrier"]
        for j in range(self.shape.group_blocks):
            source = self.refs["bias"].at[head, rows, self.columns(j)]
            mosaic_gpu().copy_gmem_to_smem(source, self.refs["bias_smem"].at[j], barrier)
        mosaic_gpu().barrier_wait(barrier)

    def _copy_next(self, i: Any, j: Any, num_windows: Any) -> None:
        """Copy the operands of the block after block `j` of window `i`, if there is one."""
        is_last = j + 1 == self.shape.group_blocks
        columns: dict[str, OperandLayout] = {
            name: layout for name, layout in self.layouts.items() if layout != "row"
        }
        pallas().when(jnp.logical_not(is_last))(lambda: self._copy(i, j + 1, columns))
        pallas().when(is_last & (i + 1 < num_windows))(lambda: self._copy(i + 1, 0, self.layouts))

    def _copy(self, i: Any, j: Any, layouts: Mapping[str, OperandLayout]) -> None:
        window, head = self._window(i), self.position[1]
        for name, layout in layouts.items():
            index = {
                "row": (self.rows(),),
                "column": (self.columns(j),),
                "transposed": (slice(None), self.columns(j)),
            }[layout]
            slot = self._slot(i, j, layout)
            barrier = self.refs["row_barrier" if layout == "row" else "column_barrier"]
            mosaic_gpu().copy_gmem_to_smem(
                self.refs[name].at[window, head, *index],
                self.refs[f"{name}_smem"].at[slot],
                barrier.at[slot],
            )

    def _wait(self, i: Any, j: Any) -> None:
        wait = mosaic_gpu().barrier_wait
        pallas().when(j == 0)(lambda: wait(self.refs["row_barrier"].at[self._slot(i, j, "row")]))
        wait(self.refs["column_barrier"].at[self._slot(i, j, "column")])

    def _slot(self, i: Any, j: Any, layout: OperandLayout) -> Any:
        return lax.rem(i if layout == "row" else i * self.shape.group_blocks + j, NUM_SLOTS)

    def _tile(self, i: Any, j: Any) -> Tile:
        return Tile(
            window=self._window(i),
            head=self.position[1],
            column_group=self.position[2],
            block=j,
            rows=self.rows(),
            columns=self.columns(j),
            operands={
                name: self.refs[f"{name}_smem"].at[self._slot(i, j, layout)]
                for name, layout in self.layouts.items()
            },
        )

    def _window(self, i: Any) -> Any:
        return self.position[0] * self.shape.group_windows + i

    def rows(self) -> Any:
        """Return the slice of the program's rows."""
        return pallas().ds(self.position[3] * TILE, TILE)

    def columns(self, j: Any) -> Any:
        """Return the slice of the columns of block `j` of the program."""
        return pallas().ds((self.position[2] * self.shape.group_blocks + j) * TILE, TILE)


# --- programs ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TileKernel:
    """A kernel that runs a `TileLoop` in every program.

    Attributes:
        name: Name of the kernel.
        program: Computes one program.
        shape: Sizes.
        row: Operands `(windows, heads, rows, d)` by name.
        column: Operands `(windows, heads, columns, d)` by name.
        contracted: Operands of columns by name that are the right side of `matmul_columns`. In
            float32 they are copied transposed, because wgmma cannot transpose them.
        arrays: `bias` and further arrays; see `TileLoop.refs`.
        outputs: Shapes and dtypes by name.
        lhs: Names of tiles in shared memory, left operands of `matmul_columns`.
        sums: Names of buffers in shared memory `(blocks, TILE, TILE)`, float32.
        num_matmuls: Matmuls of every tile.
    """

    name: str
    program: Callable[[TileLoop], None]
    shape: Shape
    row: Mapping[str, Array]
    column: Mapping[str, Array]
    contracted: Mapping[str, Array]
    arrays: Mapping[str, Array]
    outputs: Mapping[str, Any]
    lhs: tuple[str, ...]
    sums: tuple[str, ...] = ()
    num_matmuls: int

    @property
    def is_transposed(self) -> bool:
        """Whether right operands must be transposed in device memory."""
        return self.arrays["bias"].dtype == jnp.float32

    @property
    def layouts(self) -> dict[str, OperandLayout]:
        """Layouts of the operands by name."""
        rows: dict[str, OperandLayout] = dict.fromkeys(self.row, "row")
        columns: dict[str, OperandLayout] = dict.fromkeys(self.column, "column")
        contracted: dict[str, OperandLayout] = (
            dict.fromkeys(map(_transposed_name, self.contracted), "transposed")
            if self.is_transposed
            else dict.fromkeys(self.contracted, "column")
        )
        return {**rows, **columns, **contracted}

    def operands(self) -> dict[str, Array]:
        """Return the arrays that the kernel is called with, by name."""
        contracted = (
            {_transposed_name(name): x.mT for name, x in self.contracted.items()}
            if self.is_transposed
            else self.contracted
        )
        return {**self.row, **self.column, **contracted, **self.arrays}

    def smem_types(self) -> dict[str, Any]:
        """Return the types of the buffers in shared memory by name."""
        dtype, tiles = self.arrays["bias"].dtype, (self.shape.group_blocks, TILE, TILE)
        operand = (TILE, self.shape.head_dim)
        sides = {"row": operand, "column": operand, "transposed": operand[::-1]}
        rhs_columns = TILE if self.is_transposed else self.shape.head_dim
        lhs = operand_smem((TILE, TILE), dtype, swizzle_bytes(rhs_columns, dtype))
        return {
            **{
                f"{name}_smem": operand_smem((NUM_SLOTS, *sides[layout]), dtype)
                for name, layout in self.layouts.items()
            },
            "bias_smem": operand_smem(tiles, dtype),
            **dict.fromkeys(self.lhs, lhs),
            **dict.fromkeys(self.sums, operand_smem(tiles, jnp.float32)),
        }

    def smem_bytes(self) -> int:
        """Return the bytes of shared memory that a program needs."""
        buffers = self.smem_types().values()
        return BARRIER_BYTES + sum(
            math.prod(buffer.shape) * jnp.dtype(buffer.dtype).itemsize for buffer in buffers
        )

    def fits(self) -> bool:
        """Return whether a program has enough shared memory."""
        return self.smem_bytes() <= MAX_SMEM_BYTES

    def run(self, interpret: Any) -> list[Array]:
        """Return the outputs.

        Args:
            interpret: Parameters of the interpreter, or None for the device.
        """
        operands, layouts = self.operands(), self.layouts
        scratch_types = self._scratch_types()
        names = [*operands, *self.outputs, *scratch_types]  # order in which Pallas passes them

        def body(*refs: Any) -> None:
            refs_by_name = dict(zip(names, refs, strict=True))
            self.program(
                TileLoop(shape=self.shape, layouts=layouts, refs=refs_by_name, interpret=interpret)
            )

        kernel = make_kernel(
            body,
            list(operands.values()),
            flops=2 * self.num_matmuls * self.shape.num_scores * self.shape.head_dim,
            transcendentals=self.shape.num_scores,
            out_type=list(self.outputs.values()),
            scratch_types=list(scratch_types.values()),
            grid=(math.prod(self.shape.grid),),
            grid_names=("program",),
            kernel_name=self.name,
            interpret=interpret,
        )
        return kernel(*operands.values())

    def _scratch_types(self) -> dict[str, Any]:
        num_rows = len(self.row)
        arrivals = {"row_barrier": num_rows, "column_barrier": len(self.layouts) - num_rows}
        return {
            **self.smem_types(),
            "bias_barrier": mosaic_gpu().Barrier(num_arrivals=self.shape.group_blocks),
            **{
                name: mosaic_gpu().Barrier(num_arrivals=count, num_barriers=NUM_SLOTS)
                for name, count in arrivals.items()
            },
        }


def _transposed_name(name: str) -> str:
    return f"{name}_transposed"
