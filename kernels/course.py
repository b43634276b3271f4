"""The course of a program: which lines of its strip are made, and in what order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from .lanes import pallas
from .strip import Strip

HALO = 3  # lines that are read above and below those that are kept, one for each convolution


@dataclass(frozen=True, kw_only=True)
class Course:
    """A walk down a strip, of which `lines` from line `top` and `columns` from `left` are kept.

    activate: between convolutions. close: what the block gives of found, given and gate, by pixel.
    """

    strip: Strip
    top: Any
    left: Any
    lines: int
    columns: int
    activate: Callable[[Array], Array]
    close: Callable[[Array, Array, Any], Array]

    def run(self) -> None:
        """One line after the other, a line read ahead."""
        self.strip.prepare()
        lax.fori_loop(0, self.strip.count + HALO, self._step, self.strip.given(0))

    def _step(self, i: Any, line: Array) -> Array:
        """Line `i` comes; every convolution makes the line above the one that it is given."""
        strip = self.strip
        pallas().when(i < strip.count)(lambda: strip.put(0, i, line))
        pallas().when(i == strip.count)(lambda: strip.end(0))
        ahead = strip.given(i + 1)
        for convolution in (0, 1):
            self._make(convolution, i - convolution - 1)
        pallas().when(self._matters(i - HALO, 0))(lambda: self._finish(i - HALO))
        return ahead

    def _make(self, convolution: int, k: Any) -> None:
        """Line `k` of a convolution, for the next one."""
        strip, following = self.strip, convolution + 1

        @pallas().when(self._matters(k, HALO - following))
        def _() -> None:
            strip.put(following, k, self.activate(strip.convolved(convolution, k)))

        pallas().when(k == strip.count)(lambda: strip.end(following))

    def _finish(self, k: Any) -> None:
        """Line `k` of the block."""
        strip, refs = self.strip, self.strip.refs
        found = strip.convolved(2, k)
        given = strip.given(k).astype(jnp.float32)
        line = self.close(found, given, strip.gated(found))
        refs.made[...] = line.astype(refs.y.dtype)
        kept = refs.made[pallas().ds(self.left - strip.left, self.columns), :]
        refs.y[strip.n, strip.top + k, pallas().ds(self.left, self.columns), :] = kept

    def _matters(self, k: Any, reach: int) -> Any:
        """Whether line `k` is one of the strip, and at most `reach` away from those kept."""
        line = self.strip.top + k
        near = (line >= self.top - reach) & (line < self.top + self.lines + reach)
        return (k >= 0) & (k < self.strip.count) & near
