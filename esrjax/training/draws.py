"""What the patches of a batch are, drawn from seed and step alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import grain
import numpy as np
from numpy.typing import NDArray

from esrjax.training.recipe import Data

Numbers = NDArray[np.int32]
Bits = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """The patches of one batch, to be cut from the LR pictures and, scaled, from the HR ones.

    shape: (h, w) of an LR patch. picture, top, left: (n,), the last two in LR pixels. turned: the
    patch is cut as (w, h) and its axes are exchanged; upended, mirrored: then it is flipped.
    colours: (n, 3), which channel of the picture each channel of the patch is.
    """

    shape: tuple[int, int]
    picture: Numbers
    top: Numbers
    left: Numbers
    turned: Bits
    upended: Bits
    mirrored: Bits
    colours: Numbers


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """The draws of one stage, by step.

    sides: (N, 2), LR sides of every training picture, set after set. counts: how many each set has.
    share: `(i, n)` asks for the i-th of n equal parts of every batch.
    """

    data: Data
    sides: Numbers
    counts: Sequence[int]
    scale: int
    seed: int
    share: tuple[int, int] = (0, 1)

    @cached_property
    def order(self) -> Any:
        """Which picture each patch comes from: every one once, shuffled, then again.

        Sets with shares are each gone through so, and drawn from by their shares.
        """
        shares = list(self.data.shares.values())
        if None in shares:
            return self._shuffled(0, len(self.sides))
        ends = list(accumulate(self.counts))
        starts = [end - count for end, count in zip(ends, self.counts, strict=True)]
        each = [self._shuffled(*span) for span in zip(starts, ends, strict=True)]
        return grain.MapDataset.mix(each, [share or 0.0 for share in shares])

    def _shuffled(self, start: int, end: int) -> Any:
        return grain.MapDataset.range(start, end).shuffle(seed=self.seed).repeat()

    def at(self, step: int) -> Draw:
        """The draw of that step, whatever came before; of it, this share."""
        draw, n = np.random.default_rng((self.seed, step)), self.data.batch
        shapes = self.data.shapes_at(step)
        height, width = (side // self.scale for side in shapes[draw.integers(len(shapes))])
        picture = np.array([self.order[step * n + i] for i in range(n)], np.int32)
        hflip, vflip, turned = (
            draw.integers(2, size=n).astype(bool) & (name in self.data.augment)
            for name in ("hflip", "vflip", "rot90")
        )
        sides = np.where(turned[:, None], (width, height), (height, width))
        corner = draw.integers(1 + self.sides[picture] - sides).astype(np.int32)
        colours = np.tile(np.arange(3, dtype=np.int32), (n, 1))
        if "rgb" in self.data.augment:
            mixed = draw.permuted(colours, axis=1)
            colours = np.where(draw.integers(2, size=(n, 1)), mixed, colours)
        index, of = self.share
        part = slice(index * n // of, (index + 1) * n // of)
        return Draw(
            shape=(height, width),
            picture=picture[part],
            top=corner[part, 0],
            left=corner[part, 1],
            turned=turned[part],
            # a quarter turn to the left exchanges the axes, and the flips with them
            upended=np.where(turned, ~hflip, vflip)[part],
            mirrored=np.where(turned, vflip, hflip)[part],
            colours=colours[part],
        )
