"""Sets of pictures -> batches of patches; a batch is a function of seed and step alone."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict

import grain
import numpy as np
from absl import flags
from numpy.typing import NDArray

from esrjax.errors import UserError
from esrjax.pictures.files import Pixels
from esrjax.pictures.reading import ahead
from esrjax.pictures.sets import Pair, select
from esrjax.training.draws import Bits, Draws, Numbers
from esrjax.training.recipe import Data
from esrjax.training.shelf import GIB, Shelf

Bytes = NDArray[np.uint8]

_BEYOND = (
    10**6
)  # Grain's workers give back their shared memory if they are stopped, not if they end


class Patches(TypedDict):
    """A batch that is yet to be flipped and recoloured.

    `lr (n, h, w, 3)` and `hr (n, s·h, s·w, 3)`, 8 bits; upended, mirrored: (n,), which, and how;
    colours: (n, 3), which channels they are to have.
    """

    lr: Bytes
    hr: Bytes
    upended: Bits
    mirrored: Bits
    colours: Numbers


class NoPatches(UserError):
    """Pictures from which the patches of a stage cannot be cut."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """The batches of one stage, by step. pictures: (LR, HR) of every training picture."""

    draws: Draws
    pictures: Sequence[tuple[Pixels, Pixels]]

    def patches(self, step: int) -> Patches:
        """The batch of that step, whatever came before; the devices do the rest."""
        draw = self.draws.at(step)
        places = zip(draw.picture, draw.top, draw.left, draw.turned, strict=True)
        cut = [self._cut(int(index), draw.shape, *place) for index, *place in places]
        return Patches(
            lr=np.stack([lr for lr, _ in cut]),
            hr=np.stack([hr for _, hr in cut]),
            upended=draw.upended,
            mirrored=draw.mirrored,
            colours=draw.colours,
        )

    def since(self, step: int, steps: int, threads: int = 2) -> Generator[Patches]:
        """The patches from `step` to `steps`, made ahead of their use."""
        workers, end = self.draws.data.workers, steps + (_BEYOND if self.draws.data.workers else 0)
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        source: Any = grain.MapDataset.range(step, end).map(self.patches).to_iter_dataset(reading)
        iterator = iter(_by_workers(source, workers) if workers else source)
        try:
            yield from islice(iterator, steps - step)
        finally:
            iterator.close()

    def _cut(
        self, index: int, shape: tuple[int, int], top: int, left: int, turned: bool
    ) -> tuple[Bytes, Bytes]:
        """One patch of LR and HR alike, its axes exchanged where it is to be turned."""
        h, w = shape[::-1] if turned else shape
        lr, hr = self.pictures[index]
        s = self.draws.scale
        small = lr[top : top + h, left : left + w]
        large = hr[s * top : s * (top + h), s * left : s * (left + w)]
        return (small.swapaxes(0, 1), large.swapaxes(0, 1)) if turned else (small, large)


def _by_workers(source: Any, workers: int) -> Any:
    """The same, made by other processes."""
    flags.FLAGS.mark_as_parsed()  # Grain's own, which no absl program has read
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return source.mp_prefetch(options, worker_init_fn=_serve)


def _serve(index: int, count: int) -> None:
    """In a worker: deaf to the signals that its parent heeds, and gone when that is."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_outlive, args=(parent,), daemon=True).start()


def _outlive(parent: Any) -> None:
    parent.join()
    os._exit(1)


def open_batches(data: Data, scale: int, seed: int, share: tuple[int, int] = (0, 1)) -> Batches:
    """The batches of a stage, or a share of each; what cannot be cut is an error.

    Sets that fit into `data.memory` are read now, others while they are used.
    """
    _require_divisible(data, scale)
    side = max(max(shape) for shape in data.shapes) // scale
    found = [_with_smaller(find(name, scale), data.shrink) for name in data.shares]
    sides = {pair: pair.sides() for pairs in found for pair in pairs}
    small = [pair for pairs in found for pair in pairs if min(sides[pair]) < side]
    left_out = set(small)
    kept = [[pair for pair in pairs if pair not in left_out] for pairs in found]
    if small and (data.small == "refuse" or not all(kept)):
        raise _too_small(small, [pair for pairs in found for pair in pairs], side * scale)
    chosen = [pair for pairs in kept for pair in pairs]
    draws = Draws(
        data=data,
        sides=np.array([sides[pair] for pair in chosen], np.int32),
        counts=[len(each) for each in kept],
        scale=scale,
        seed=seed,
        share=share,
    )
    return Batches(draws=draws, pictures=_shelved(chosen, draws))


def _shelved(pairs: Sequence[Pair], draws: Draws) -> Shelf:
    """The pictures, read if they all fit and if it is this process that cuts them."""
    data = draws.data
    shelf = Shelf(pairs, data.memory, readers=max(1, data.workers))
    pixels = int(np.prod(draws.sides.astype(np.int64), axis=1).sum()) * (1 + draws.scale**2)
    if 3 * pixels <= data.memory * GIB and not data.workers:
        for _ in ahead(shelf.__getitem__, range(len(pairs))):
            pass
    return shelf


def find(name: str | Path, scale: int) -> tuple[Pair, ...]:
    """The pairs of a set by name or folder, or of a part of it, unread."""
    return select(str(name), scale)


def _with_smaller(pairs: Sequence[Pair], factors: Sequence[float]) -> tuple[Pair, ...]:
    """The pairs, and each of them again by every factor."""
    return (*pairs, *(pair.smaller(factor) for factor in factors for pair in pairs))


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
