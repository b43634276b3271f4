"""Batches of patches cropped by the host; a batch is a function of seed and step alone."""

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

from esrjax.data.datasets import Pair, list_pairs
from esrjax.data.image_io import Pixels, prefetch_map
from esrjax.errors import UserError
from esrjax.training.draws import BoolArray, Int32Array, PatchSampler
from esrjax.training.recipe import Data
from esrjax.training.shelf import GIB, ImageCache

UInt8Array = NDArray[np.uint8]

# With worker processes, Grain's dataset is made longer than what is read from it: its workers
# release their shared memory when they are stopped, but not when they reach the end by themselves.
_EXTRA_STEPS = 10**6


class PatchBatch(TypedDict):
    """A batch of cropped patches before flips and channel shuffle, which run on the devices.

    Attributes:
        lr: (n, h, w, 3), uint8.
        hr: (n, s·h, s·w, 3), uint8.
        vflip: (n,), which patches are flipped top to bottom.
        hflip: (n,), which patches are flipped left to right.
        channel_order: (n, 3), the source channel of each channel of the result.
    """

    lr: UInt8Array
    hr: UInt8Array
    vflip: BoolArray
    hflip: BoolArray
    channel_order: Int32Array


class PatchError(UserError):
    """Raised when the patches of a stage cannot be cropped from its images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """The batches of one stage, by step.

    Attributes:
        sampler: What is drawn for each step.
        images: (LR, HR) of every training image, (h, w, 3) and (s·h, s·w, 3), uint8.
    """

    sampler: PatchSampler
    images: Sequence[tuple[Pixels, Pixels]]

    def batch_at(self, step: int) -> PatchBatch:
        """Return the batch of `step`, from 0; it does not depend on the batches before it."""
        spec = self.sampler.sample(step)
        corners = zip(spec.image_index, spec.top, spec.left, spec.transpose, strict=True)
        crops = [self._crop(int(index), spec.lr_patch_size, *corner) for index, *corner in corners]
        return PatchBatch(
            lr=np.stack([lr for lr, _ in crops]),
            hr=np.stack([hr for _, hr in crops]),
            vflip=spec.vflip,
            hflip=spec.hflip,
            channel_order=spec.channel_order,
        )

    def iter_from(self, step: int, stop: int, threads: int = 2) -> Generator[PatchBatch]:
        """Yield the batches from `step` up to, but not including, `stop`, prefetched.

        Args:
            step: First step, from 0.
            stop: Step after the last one.
            threads: Threads that crop, of this process or of each worker process.
        """
        num_workers = self.sampler.data.num_workers
        end = stop + (_EXTRA_STEPS if num_workers else 0)
        read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        source: Any = (
            grain.MapDataset.range(step, end).map(self.batch_at).to_iter_dataset(read_options)
        )
        iterator = iter(_prefetch_in_processes(source, num_workers) if num_workers else source)
        try:
            yield from islice(iterator, stop - step)
        finally:
            iterator.close()

    def _crop(
        self, index: int, lr_patch_size: tuple[int, int], top: int, left: int, transpose: bool
    ) -> tuple[UInt8Array, UInt8Array]:
        """Return the same patch of LR and HR, with height and width swapped if `transpose`."""
        h, w = lr_patch_size[::-1] if transpose else lr_patch_size
        lr, hr = self.images[index]
        s = self.sampler.scale
        lr_crop = lr[top : top + h, left : left + w]
        hr_crop = hr[s * top : s * (top + h), s * left : s * (left + w)]
        return (lr_crop.swapaxes(0, 1), hr_crop.swapaxes(0, 1)) if transpose else (lr_crop, hr_crop)


def _prefetch_in_processes(source: Any, num_workers: int) -> Any:
    """Return the dataset computed by worker processes."""
    flags.FLAGS.mark_as_parsed()  # Grain reads its absl flags, which no absl.app has parsed here
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
    return source.mp_prefetch(options, worker_init_fn=_init_worker)


def _init_worker(index: int, count: int) -> None:
    """Worker initializer: ignore SIGINT/SIGTERM, exit when the parent exits.

    Both signals reach the whole process group; the parent alone decides when the workers stop.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: Any) -> None:
    parent.join()
    os._exit(1)


def open_batches(data: Data, scale: int, seed: int, shard: tuple[int, int] = (0, 1)) -> Batches:
    """Return the batches of a stage, or one shard of each.

    Datasets that fit into `data.cache_gib` are read now, others while they are used.

    Args:
        data: The stage's data.
        scale: Upscaling factor.
        seed: Seed of the sampler.
        shard: `(i, n)`: the i-th of n equal parts of every batch.

    Raises:
        PatchError: A patch size is not divisible by the scale, or images are smaller than it.
    """
    _check_divisible(data, scale)
    min_side = max(max(size) for size in data.all_patch_sizes) // scale
    pairs_by_dataset = [
        _with_downscales(find_pairs(name, scale), data.hr_downscales)
        for name in data.dataset_weights
    ]
    sizes = {pair: pair.lr_size() for pairs in pairs_by_dataset for pair in pairs}
    undersized = [
        pair for pairs in pairs_by_dataset for pair in pairs if min(sizes[pair]) < min_side
    ]
    excluded = set(undersized)
    usable = [[pair for pair in pairs if pair not in excluded] for pairs in pairs_by_dataset]
    if undersized and (data.undersized == "error" or not all(usable)):
        raise _undersized(
            undersized, [pair for pairs in pairs_by_dataset for pair in pairs], min_side * scale
        )
    all_usable = [pair for pairs in usable for pair in pairs]
    sampler = PatchSampler(
        data=data,
        lr_sizes=np.array([sizes[pair] for pair in all_usable], np.int32),
        dataset_lengths=[len(dataset) for dataset in usable],
        scale=scale,
        seed=seed,
        shard=shard,
    )
    return Batches(sampler=sampler, images=_cached_images(all_usable, sampler))


def _cached_images(pairs: Sequence[Pair], sampler: PatchSampler) -> ImageCache:
    """Return the image cache, filled if all images fit and this process crops them."""
    data = sampler.data
    images = ImageCache(pairs, data.cache_gib, num_readers=max(1, data.num_workers))
    pixels = int(np.prod(sampler.lr_sizes.astype(np.int64), axis=1).sum()) * (1 + sampler.scale**2)
    if 3 * pixels <= data.cache_gib * GIB and not data.num_workers:
        for _ in prefetch_map(images.__getitem__, range(len(pairs))):
            pass
    return images


def find_pairs(name: str | Path, scale: int) -> tuple[Pair, ...]:
    """Return the pairs of a dataset, by name or folder, or of a part of it; no pixels are read."""
    return list_pairs(str(name), scale)


def _with_downscales(pairs: Sequence[Pair], factors: Sequence[float]) -> tuple[Pair, ...]:
    """Return the pairs, followed by a downscaled copy of each for every factor."""
    return (*pairs, *(pair.downscaled(factor) for factor in factors for pair in pairs))


def _check_divisible(data: Data, scale: int) -> None:
    indivisible = [size for size in data.all_patch_sizes if size[0] % scale or size[1] % scale]
    if indivisible:
        raise PatchError(
            f"HR patches of {indivisible[0][0]}x{indivisible[0][1]} have no LR counterpart",
            rule=f"height and width of an HR patch are multiples of {scale}, the scale",
            remedy="change data.hr_patch_sizes",
        )


def _undersized(undersized: Sequence[Pair], pairs: Sequence[Pair], min_side: int) -> PatchError:
    names = ", ".join(pair.name for pair in undersized[:5])
    return PatchError(
        f"{len(undersized)} of {len(pairs)} images are too small: {names}",
        rule=f"each side of an HR image has at least the {min_side} pixels of the largest patch",
        remedy='reduce data.hr_patch_sizes, or skip these images with data.undersized = "skip"',
    )
