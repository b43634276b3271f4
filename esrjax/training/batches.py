"""Sets of pictures -> batches of patches; a batch is a function of seed and step alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict

import grain
import numpy as np
from numpy.typing import NDArray

from esrjax.errors import UserError
from esrjax.pictures.files import Pixels
from esrjax.pictures.sets import Pair, select
from esrjax.training.recipe import Data

Bytes = NDArray[np.uint8]


class Batch(TypedDict):
    """`lr (n, h, w, 3)` and `hr (n, s·h, s·w, 3)`, 8 bits."""

    lr: Bytes
    hr: Bytes


class NoPatches(UserError):
    """Pictures from which the patches of a stage cannot be cut."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """The batches of one stage, by step.

    pictures: (LR, HR) of every training picture, set after set. counts: how many each set has.
    seed: of the stage.
    """

    data: Data
    pictures: Sequence[tuple[Pixels, Pixels]]
    counts: Sequence[int]
    scale: int
    seed: int

    @cached_property
    def _order(self) -> Any:
        """Which picture each patch comes from: every one once, shuffled, then again.

        Sets with shares are each gone through so, and drawn from by their shares.
        """
        shares = list(self.data.shares.values())
        if None in shares:
            return self._shuffled(0, len(self.pictures))
        ends = list(accumulate(self.counts))
        starts = [end - count for end, count in zip(ends, self.counts, strict=True)]
        each = [self._shuffled(*span) for span in zip(starts, ends, strict=True)]
        return grain.MapDataset.mix(each, [share or 0.0 for share in shares])

    def _shuffled(self, start: int, end: int) -> Any:
        return grain.MapDataset.range(start, end).shuffle(seed=self.seed).repeat()

    def batch(self, step: int) -> Batch:
        """The batch of that step, whatever came before."""
        draw = np.random.default_rng((self.seed, step))
        shapes = self.data.shapes_at(step)
        shape = shapes[draw.integers(len(shapes))]
        first = step * self.data.batch
        patches = [
            self._patch(self.pictures[self._order[first + i]], shape, draw)
            for i in range(self.data.batch)
        ]
        return Batch(lr=np.stack([lr for lr, _ in patches]), hr=np.stack([hr for _, hr in patches]))

    def since(self, step: int, steps: int, threads: int = 2) -> Iterator[Batch]:
        """The batches from `step` to `steps`, made ahead of their use."""
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        return iter(grain.MapDataset.range(step, steps).map(self.batch).to_iter_dataset(ahead))

    def _patch(
        self, picture: tuple[Pixels, Pixels], shape: tuple[int, int], draw: np.random.Generator
    ) -> tuple[Bytes, Bytes]:
        """A random crop of LR and HR alike, flipped and turned as the stage says."""
        hflip, vflip, turn = (
            name in self.data.augment and bool(draw.integers(2))
            for name in ("hflip", "vflip", "rot90")
        )
        h, w = (side // self.scale for side in (shape[::-1] if turn else shape))
        lr, hr = picture
        top, left = (draw.integers(1 + have - want) for have, want in zip(lr.shape, (h, w)))  # noqa: B905
        s = self.scale
        small = lr[top : top + h, left : left + w]
        large = hr[s * top : s * (top + h), s * left : s * (left + w)]
        return _turned(small, hflip, vflip, turn), _turned(large, hflip, vflip, turn)


def _turned(patch: Bytes, hflip: bool, vflip: bool, turn: bool) -> Bytes:
    patch = patch[:, ::-1] if hflip else patch
    patch = patch[::-1] if vflip else patch
    return np.rot90(patch) if turn else patch


def open_batches(data: Data, scale: int, seed: int) -> Batches:
    """The batches of a stage, its sets read into memory; what cannot be cut is an error."""
    _require_divisible(data, scale)
    side = max(max(shape) for shape in data.shapes)
    found = [find(name, scale) for name in data.shares]
    loaded = [[(pair, pair.load()) for pair in pairs] for pairs in found]
    small = [pair for pairs in loaded for pair, (_, hr) in pairs if min(hr.shape[:2]) < side]
    kept = [[pictures for pair, pictures in pairs if pair not in small] for pairs in loaded]
    if small and (data.small == "refuse" or not all(kept)):
        raise _too_small(small, [pair for pairs in found for pair in pairs], side)
    return Batches(
        data=data,
        pictures=[pictures for each in kept for pictures in each],
        counts=[len(each) for each in kept],
        scale=scale,
        seed=seed,
    )


def find(name: str | Path, scale: int) -> tuple[Pair, ...]:
    """The pairs of a set by name or folder, or of a part of it, unread."""
    return select(str(name), scale)


def _require_divisible(data: Data, scale: int) -> None:
    odd = [shape for shape in data.shapes if shape[0] % scale or shape[1] % scale]
    if odd:
        raise NoPatches(
            f"patches of {odd[0][0]} x {odd[0][1]} cannot be cut",
            rule=f"both sides of an HR patch are multiples of {scale}, the scale",
            remedy="correct data.patches",
        )


def _too_small(small: Sequence[Pair], found: Sequence[Pair], side: int) -> NoPatches:
    names = ", ".join(pair.name for pair in small[:5])
    return NoPatches(
        f"{len(small)} of {len(found)} pictures are too small: {names}",
        rule=f"a picture has at least {side} pixels a side, as the largest patch",
        remedy='take smaller patches, or leave these pictures out with data.small = "skip"',
    )
