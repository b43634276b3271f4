"""Three 3x3 convolutions in one pass: lines of a picture walk from one to the next.

A program owns a strip of the picture and walks down its lines. Of what a convolution is given it
keeps the last three lines in shared memory; from them it makes the line in the middle, and hands
it on. Device memory sees what the block is given, and what it gives.

Outside of the picture every convolution is given zeros. Strips lie inside of it; what they make
near their own edges counts only where that edge is the picture's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from . import room
from .course import HALO, Course
from .lanes import mosaic, pallas
from .strip import Refs, Strip

MARGIN = 4  # columns at either side that are not kept; with a fourth the rest is even
BLOCKS = {  # pixels of a strip's line, lines that a program keeps
    "columns": room.COLUMNS,
    "lines": (16, 8, 32, 64),
}


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A block of three convolutions.

    activate: between convolutions. close: what the block gives of found, given and gate, by pixel.
    interpret: parameters of the interpreter, or None for the device.
    """

    name: str
    columns: int
    lines: int
    activate: Callable[[Array], Array]
    close: Callable[[Array, Array, Any], Array]
    interpret: Any = None

    def __call__(
        self,
        u: Array,
        kernels: Sequence[Array],
        biases: Sequence[Array] = (),
        gate: tuple[Array, Array] | None = None,
        mask: Array | None = None,
    ) -> Array:
        """As `u (N, h, w, C)`; kernels `(3, 3, C, C)`, biases `(C,)`, gate `(C, C)` and `(C,)`."""
        _, h, w, channels = u.shape
        more, short = room.filled(channels) - channels, max(0, self.columns - w)
        operands = {
            "u": jnp.pad(u, ((0, 0), (0, 0), (0, short), (0, more))),
            "w": self._turned(_taps(kernels, more)),
        }
        if biases:
            operands["b"] = jnp.pad(jnp.stack(biases), ((0, 0), (0, more))).astype(jnp.float32)
        if gate is not None:
            operands["gate"] = self._turned(jnp.pad(gate[0], ((0, more), (0, more))))
            operands["shift"] = jnp.pad(gate[1], (0, more)).astype(jnp.float32)
        if mask is not None or short:
            exists = jnp.ones((h, w), jnp.float32) if mask is None else mask.astype(jnp.float32)
            operands["mask"] = jnp.pad(exists, ((0, 0), (0, short)))
        return self._run(operands, w)[:, :, :w, :channels]

    def _turned(self, matrix: Array) -> Array:
        """By columns, as tensor cores take the second factor of TF32; the interpreter, by rows."""
        return matrix.mT if self.interpret is None else matrix

    def _run(self, operands: dict[str, Array], w: int) -> Array:
        u = operands["u"]
        n, h, _, channels = u.shape
        parts = (n, pallas().cdiv(w, self.columns - 2 * MARGIN), pallas().cdiv(h, self.lines))
        shared = self._shared(channels, u.dtype, "gate" in operands)
        names = [*operands, "y", *shared]
        run = mosaic().kernel(
            lambda *refs: self._program(Refs(**dict(zip(names, refs, strict=True))), parts),
            out_type=jax.ShapeDtypeStruct(u.shape, u.dtype),
            scratch_types=list(shared.values()),
            grid=(math.prod(parts),),
            grid_names=("program",),
            kernel_name=self.name,
            interpret=self.interpret,
        )
        return run(*operands.values())

    def _shared(self, channels: int, dtype: Any, gated: bool) -> dict[str, Any]:
        """Shared memory; what tensor cores read is tiled and swizzled as they want it."""
        swizzle = math.gcd(channels * dtype.itemsize, 128)
        tiling = mosaic().TilingTransform((8, swizzle // dtype.itemsize))
        tiled = {"transforms": (tiling, mosaic().SwizzleTransform(swizzle))}
        shapes = room.shapes(self.columns, channels, gated)
        if self.interpret is None:
            shapes["taps"] = (9, 3 * channels, channels)
        plain = {"made": {}, "sums": {}}
        found = {
            name: mosaic().SMEM(
                shape, jnp.float32 if name == "sums" else dtype, **plain.get(name, tiled)
            )
            for name, shape in shapes.items()
        }
        return {**found, "ready": mosaic().Barrier()}

    def _program(self, refs: Refs, parts: tuple[int, int, int]) -> None:
        """One strip: lines of the halo above, those that it keeps, lines of the halo below."""
        _, h, wide, channels = refs.u.shape
        columns, lines = self.columns - 2 * MARGIN, min(self.lines, h)
        count = min(lines + 2 * HALO, h)
        rest, segment = jnp.divmod(lax.axis_index("program"), parts[2])
        n, strip = jnp.divmod(rest, parts[1])
        top = jnp.minimum(segment * lines, h - lines)
        left = jnp.minimum(strip * columns, wide - columns)
        Course(
            strip=Strip(
                refs=refs,
                n=n,
                top=jnp.clip(top - HALO, 0, h - count),
                left=jnp.clip(left - MARGIN, 0, wide - self.columns),
                count=count,
                columns=self.columns,
                channels=channels,
                interpret=self.interpret,
            ),
            top=top,
            left=left,
            lines=lines,
            columns=columns,
            activate=self.activate,
            close=self.close,
        ).run()


def _taps(kernels: Sequence[Array], more: int) -> Array:
    """`(9, C, 3C)`: by convolution and row, the taps from left to right."""
    wide = jnp.pad(jnp.stack(kernels), ((0, 0),) * 3 + ((0, more),) * 2)
    channels = wide.shape[-1]
    return wide.transpose(0, 1, 3, 2, 4).reshape(9, channels, 3 * channels)
