"""One program of a walk: a strip of lines, and how a line of a convolution is made.

A line of a convolution is three products on tensor cores, one for each row of the kernel: a line
`(columns, C)` times the row's three taps side by side `(C, 3C)`. A tap to the left or to the right
belongs to a neighbouring pixel: its sums go through shared memory and come back one pixel further.
So all factors are whole lines, which is how tensor cores must have them.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from .lanes import load, mosaic, pallas


@dataclass(frozen=True, kw_only=True)
class Refs:
    """Memory that a program sees: operands and result in the device's, the rest shared."""

    u: Any
    w: Any
    b: Any = None
    gate: Any = None
    shift: Any = None
    mask: Any = None
    y: Any
    taps: Any  # nine rows of three taps
    lines: Any  # (3, 3, columns, C): the last three that each convolution was given
    sums: Any  # (columns + 2, more than C): the first and the last stay zero
    made: Any  # (columns, C): a line on its way out
    ready: Any
    gating: Any = None
    found: Any = None


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A strip of picture `n`: `count` lines from line `top`, `columns` pixels from `left`.

    Lines are counted from the strip's first. Those outside of it are zero.
    """

    refs: Refs
    n: Any
    top: Any
    left: Any
    count: int
    columns: int
    channels: int
    interpret: Any

    def prepare(self) -> None:
        """Weights come, and what no line has been put in yet is zero."""
        refs = self.refs
        for source, held in ((refs.w, refs.taps), (refs.gate, refs.gating)):
            if source is not None:
                mosaic().copy_gmem_to_smem(source, held, refs.ready)
                mosaic().barrier_wait(refs.ready)
        nothing = self._nothing()
        for convolution in range(3):
            for place in range(3):
                refs.lines[convolution, place] = nothing.astype(refs.u.dtype)
        for row in (0, 2):
            refs.sums[pallas().ds(row, self.columns), : self.channels] = nothing

    def given(self, k: Any) -> Array:
        """Line `k` of the picture, or the one of the strip that is nearest to it."""
        return self._load(self.refs.u, self.n, self._line(k), self._here(), slice(None))

    def put(self, convolution: int, k: Any, line: Array) -> None:
        """Hands line `k` to a convolution; zero where the picture does not exist."""
        if self.refs.mask is not None:
            mask = self._load(self.refs.mask, self._line(k), self._here(), axis=1)
            exists = lax.broadcast_in_dim(mask, (self.columns, self.channels), (0,))
            line = jnp.where(exists > 0, line.astype(jnp.float32), self._nothing())
        self.refs.lines[convolution, _place(k)] = line.astype(self.refs.u.dtype)

    def end(self, convolution: int) -> None:
        """Hands a convolution the line below the last one, which is zero."""
        line = self._nothing().astype(self.refs.u.dtype)
        self.refs.lines[convolution, _place(self.count)] = line

    def convolved(self, convolution: int, k: Any) -> Array:
        """Line `k` of a convolution, from what it was given of the lines around: float32."""
        refs, channels = self.refs, self.channels
        factors = [
            (refs.lines.at[convolution, _place(k + row - 1)], refs.taps.at[3 * convolution + row])
            for row in range(3)
        ]
        sums = self._product(factors, 3 * channels)
        left, line, right = (
            lax.slice(sums, (0, tap * channels), (self.columns, (tap + 1) * channels))
            for tap in range(3)
        )
        line = line + self._moved(left, 0) + self._moved(right, 2)
        return line if refs.b is None else line + self._row(refs.b, convolution, slice(None))

    def gated(self, line: Array) -> Array | None:
        """`W f + b` of a line of found `f`; None where the block has no gate."""
        refs = self.refs
        if refs.gating is None:
            return None
        refs.found[...] = line.astype(refs.u.dtype)
        gate = self._product([(refs.found, refs.gating)], self.channels)
        return gate + self._row(refs.shift, slice(None))

    def _product(self, factors: list[tuple[Any, Any]], wide: int) -> Array:
        """The sum of products of shared matrices: `(columns, wide)`."""

        def multiply(sums: Any) -> Array:
            for line, taps in factors:
                turned = taps.T if self.interpret is None else taps
                mosaic().wgmma(sums, line, turned)
            return sums[...]

        mosaic().commit_smem()
        return pallas().run_scoped(multiply, mosaic().ACC((self.columns, wide), jnp.float32))

    def _moved(self, sums: Array, start: int) -> Array:
        """Sums one pixel further to the right (0) or to the left (2)."""
        held = self.refs.sums
        held[pallas().ds(1, self.columns), : self.channels] = sums
        return self._load(held, pallas().ds(start, self.columns), slice(0, self.channels))

    def _row(self, ref: Any, *index: Any) -> Array:
        """A number for every channel, the same for all pixels."""
        row = self._load(ref, *index, axis=0)
        return lax.broadcast_in_dim(row, (self.columns, self.channels), (1,))

    def _load(self, ref: Any, *index: Any, axis: int | None = None) -> Array:
        """As tensor cores hold their sums; of a vector, without the axis that it lacks."""
        if self.interpret is not None:
            return ref[index]
        layout = mosaic().Layout.WGMMA
        layout = layout if axis is None else layout.reduce(axis)
        return load(ref.at[index], layout)

    def _nothing(self) -> Array:
        zeros = jnp.zeros((self.columns, self.channels), jnp.float32)
        if self.interpret is not None:
            return zeros
        return mosaic().layout_cast(zeros, mosaic().Layout.WGMMA)

    def _line(self, k: Any) -> Any:
        return self.top + jnp.clip(k, 0, self.count - 1)

    def _here(self) -> Any:
        return pallas().ds(self.left, self.columns)


def _place(k: Any) -> Any:
    """Where line `k`, at least −1, lies among the last three."""
    return lax.rem(k + 3, 3)
