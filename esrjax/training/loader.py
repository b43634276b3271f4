"""Batches of patches cropped by the host: their random choice, an image cache, and workers.

A batch is a function of seed and step alone.
"""

import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, chain, islice
from typing import Any

import grain
import numpy as np
from absl import flags
from numpy.typing import NDArray

from esrjax.data.datasets import Pair, list_pairs
from esrjax.data.image_io import Pixels, prefetch_map
from esrjax.errors import RecipeError, TrainingFailed, list_some
from esrjax.runtime import STOP_SIGNALS
from esrjax.training.recipe import Data
from esrjax.training.run_data import with_downscales

GIB = 2**30
Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
UInt8Array = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]
PatchBatch = dict[str, NDArray[Any]]  # as `Batches.batch_at` returns it

# With worker processes, Grain's dataset is made longer than what is read from it: its workers
# release their shared memory when they are stopped, but not when they reach the end by themselves.
_EXTRA_STEPS = 10**6


# --- random choice ---


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchBatchSpec:
    """The patches of one batch: where they are cropped, and how they are augmented.

    The order is: crop, transpose, flip, channel order. Transpose and flips together give the 8
    symmetries of the square.

    Attributes:
        lr_patch_size: (h, w) of an LR patch; the HR patch is `scale` times as large.
        image_index: (n,), the training image of each patch.
        top: (n,), first LR row of each crop.
        left: (n,), first LR column of each crop.
        transpose: (n,), whether a crop of (w, h) is taken and its height and width are swapped.
        vflip: (n,), whether it is flipped top to bottom.
        hflip: (n,), whether it is flipped left to right.
        channel_order: (n, 3), the source channel of each channel of the patch.
    """

    lr_patch_size: tuple[int, int]
    image_index: Int32Array
    top: Int32Array
    left: Int32Array
    transpose: BoolArray
    vflip: BoolArray
    hflip: BoolArray
    channel_order: Int32Array


@dataclass(frozen=True, eq=False)
class ShuffledEpochs(Sequence[int]):
    """Endless sequence of the indices from `start` up to `stop`: one shuffled epoch after another.

    Any element is computed without those before it. (Grain's own shuffle takes 65536 / n tries for
    one of n indices: 12.5 ms for n = 2, 2.7 ms for n = 14.)

    Attributes:
        seed: Seed of all epochs.
        start: First index.
        stop: Index after the last one.
    """

    seed: int
    start: int
    stop: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, i: Any) -> Any:
        epoch, position = divmod(i, self.stop - self.start)
        return self.start + int(_permutation(self.seed, epoch, self.stop - self.start)[position])


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, n: int) -> Int64Array:
    return np.random.default_rng((seed, epoch)).permutation(n)


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchSampler:
    """Draws the patches of one stage, by step.

    Attributes:
        data: The stage's data.
        lr_sizes: (N, 2), LR height and width of every training image, dataset after dataset.
        dataset_lengths: Number of images of each dataset.
        scale: Upscaling factor.
        seed: Seed of all draws.
        shard: `(i, n)`: the i-th of n equal parts of every batch. The whole batch is drawn
            everywhere, so that it does not depend on the number of processes.
    """

    data: Data
    lr_sizes: Int32Array
    dataset_lengths: Sequence[int]
    scale: int
    seed: int
    shard: tuple[int, int] = (0, 1)

    @cached_property
    def image_order(self) -> Any:
        """Endless sequence of image indices: shuffled epochs over all images.

        With weights, every dataset has shuffled epochs of its own, and they are mixed by weight.
        """
        weights = list(self.data.dataset_weights.values())
        if None in weights:
            return ShuffledEpochs(self.seed, 0, len(self.lr_sizes))
        ends = list(accumulate(self.dataset_lengths))
        ranges = zip([0, *ends], ends, strict=False)
        datasets = [grain.MapDataset.source(ShuffledEpochs(self.seed, *r)) for r in ranges]
        return grain.MapDataset.mix(datasets, [weight or 0.0 for weight in weights])

    def sample(self, step: int) -> PatchBatchSpec:
        """Return this shard of the draw of `step`, from 0; it does not depend on earlier steps."""
        # The order of the calls of `rng` is fixed: another one gives other patches for every seed,
        # and a run resumed across that change would not be bit-exact.
        rng, n = np.random.default_rng((self.seed, step)), self.data.batch_size
        hr_sizes = self.data.patch_sizes_at(step)
        height, width = (side // self.scale for side in hr_sizes[rng.integers(len(hr_sizes))])
        image_index = np.array([self.image_order[step * n + i] for i in range(n)], np.int32)
        # Drawn even where it is not used, so that `augment` does not change the crops drawn below.
        hflip, vflip, transpose = (
            rng.integers(2, size=n).astype(bool) & (name in self.data.augment)
            for name in ("hflip", "vflip", "rot90")
        )
        crop_sizes = np.where(transpose[:, None], (width, height), (height, width))
        corner = rng.integers(1 + self.lr_sizes[image_index] - crop_sizes).astype(np.int32)
        channel_order = np.tile(np.arange(3, dtype=np.int32), (n, 1))
        if "rgb" in self.data.augment:
            shuffled = rng.permuted(channel_order, axis=1)
            channel_order = np.where(rng.integers(2, size=(n, 1)), shuffled, channel_order)
        index, num_shards = self.shard
        rows = slice(index * n // num_shards, (index + 1) * n // num_shards)
        return PatchBatchSpec(
            lr_patch_size=(height, width),
            image_index=image_index[rows],
            top=corner[rows, 0],
            left=corner[rows, 1],
            transpose=transpose[rows],
            # By definition the flips come first, then rot90 (counterclockwise: transpose, then
            # vflip). Here the transpose comes first, with the crop. Moved past it, hflip and vflip
            # change places, and the vflip of rot90 inverts what is then the vertical one.
            vflip=np.where(transpose, ~hflip, vflip)[rows],
            hflip=np.where(transpose, vflip, hflip)[rows],
            channel_order=channel_order[rows],
        )


# --- image cache ---


class ImageCache(Sequence[tuple[Pixels, Pixels]]):
    """Sequence of (LR, HR) images that caches what it reads until its capacity is reached.

    Nothing is evicted: images are drawn in shuffled order, so none is needed sooner than another,
    and replacing one by another would not save reads. Thread-safe.

    Args:
        pairs: The image pairs.
        capacity_gib: Capacity in GiB, over all readers together.
        num_readers: Number of processes that have a copy of the cache.
    """

    def __init__(self, pairs: Sequence[Pair], capacity_gib: float, num_readers: int = 1):
        self._args = (pairs, capacity_gib, num_readers)
        self._pairs, self._free_bytes = pairs, int(capacity_gib * GIB / num_readers)
        self._cache: dict[int, tuple[Pixels, Pixels]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: Any) -> Any:
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        images = self._pairs[index].load()
        num_bytes = sum(image.nbytes for image in images)
        with self._lock:
            if num_bytes <= self._free_bytes and index not in self._cache:
                self._free_bytes -= num_bytes
                self._cache[index] = images
        return images

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle an empty cache: a worker process reads its own images."""
        return ImageCache, self._args


# --- batches ---


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
        """Return the batch of `step`, from 0, before flips and channel shuffle.

        It does not depend on the batches before it.

        Returns:
            LR patches "lr" (n, h, w, 3) and HR patches "hr" (n, s·h, s·w, 3), uint8, and what the
            devices still do: "vflip", "hflip" and "channel_order", as of `PatchBatchSpec`.
        """
        spec = self.sampler.sample(step)
        corners = zip(spec.image_index, spec.top, spec.left, spec.transpose, strict=True)
        crops = [self._crop(int(index), spec.lr_patch_size, *corner) for index, *corner in corners]
        lr, hr = map(np.stack, zip(*crops, strict=True))
        augmentations = {key: getattr(spec, key) for key in ("vflip", "hflip", "channel_order")}
        return {"lr": lr, "hr": hr, **augmentations}

    def iter_from(self, step: int, stop: int, threads: int = 2) -> Generator[PatchBatch]:
        """Yield the batches from `step` up to, but not including, `stop`, prefetched.

        Args:
            step: First step, from 0.
            stop: Step after the last one.
            threads: Threads that crop, of this process or of each worker process.

        Raises:
            TrainingFailed: A worker process has died.
        """
        num_workers = self.sampler.data.num_workers
        end = stop + (_EXTRA_STEPS if num_workers else 0)
        read_options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        batches = grain.MapDataset.range(step, end).map(self.batch_at)
        source: Any = batches.to_iter_dataset(read_options)
        if num_workers:
            flags.FLAGS.mark_as_parsed()  # Grain reads its absl flags, which nobody has parsed
            workers = grain.MultiprocessingOptions(
                num_workers=num_workers, per_worker_buffer_size=2
            )
            source = source.mp_prefetch(workers, worker_init_fn=_init_worker)
        iterator = iter(source)
        try:
            yield from islice(iterator, stop - step)
        except RuntimeError as error:
            if match := re.search(r"Worker process .* exit code (-?\d+)", str(error)):
                raise _dead_worker(int(match[1])) from error
            raise
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


def _dead_worker(exit_code: int) -> TrainingFailed:
    """Return the error to report for a worker process with this exit code."""
    cause, remedy = f"exit code {exit_code}", "set data.num_workers = 0 to see its error"
    if exit_code < 0:
        cause = f"ended by {signal.Signals(-exit_code).name}"
    if exit_code == -signal.SIGKILL:
        remedy = "if memory ran out, reduce data.num_workers or data.cache_gib"
    if exit_code == -signal.SIGBUS:
        remedy = "enlarge /dev/shm (docker run --shm-size=2g), or set data.num_workers = 0"
    return TrainingFailed(
        f"a worker process that crops patches has died: {cause}",
        rule="worker processes live as long as their stage, and hand over batches in /dev/shm",
        location="data.num_workers",
        remedy=remedy,
    )


def _init_worker(index: int, count: int) -> None:
    """Worker initializer: ignore the signals that stop a training, exit when the parent exits.

    They reach the whole process group; the parent alone decides when the workers stop.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():
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
        RecipeError: As `check_patch_sizes` and `usable_pairs`.
    """
    check_patch_sizes(data, scale)
    usable = usable_pairs(data, scale)
    pairs = [pair for pair, _ in chain(*usable)]
    lr_sizes = np.array([size for _, size in chain(*usable)], np.int32)
    images = ImageCache(pairs, data.cache_gib, num_readers=max(1, data.num_workers))
    num_bytes = 3 * int(lr_sizes.astype(np.int64).prod(axis=1).sum()) * (1 + scale**2)
    if num_bytes <= data.cache_gib * GIB and not data.num_workers:
        for _ in prefetch_map(images.__getitem__, range(len(pairs))):
            pass  # fills the cache
    sampler = PatchSampler(
        data=data,
        lr_sizes=lr_sizes,
        dataset_lengths=[len(pairs) for pairs in usable],
        scale=scale,
        seed=seed,
        shard=shard,
    )
    return Batches(sampler=sampler, images=images)


def usable_pairs(data: Data, scale: int) -> list[list[tuple[Pair, tuple[int, int]]]]:
    """Return the pairs of each dataset that are larger than every patch, with their LR sizes.

    Sizes are read from the headers of the files.

    Args:
        data: The stage's data.
        scale: Upscaling factor.

    Raises:
        RecipeError: Images are smaller than a patch.
        UserError: There is no such dataset, or an image cannot be read.
    """
    min_side = max(chain(*data.all_patch_sizes)) // scale
    sizes = [
        [(pair, pair.lr_size()) for pair in with_downscales(pairs, data.hr_downscales)]
        for pairs in (list_pairs(name, scale) for name in data.dataset_weights)
    ]
    usable = [[(pair, size) for pair, size in pairs if min(size) >= min_side] for pairs in sizes]
    undersized = [pair.name for pair, size in chain(*sizes) if min(size) < min_side]
    if undersized and (data.undersized == "error" or not all(usable)):
        raise RecipeError(
            f"{len(undersized)} of {sum(map(len, sizes))} images are too small: "
            + list_some(undersized),
            rule=f"a side of an HR image has at least the {min_side * scale} pixels of a patch",
            remedy='reduce data.hr_patch_sizes, or skip these images with data.undersized = "skip"',
        )
    return usable


def check_patch_sizes(data: Data, scale: int, min_side: int = 1) -> None:
    """Check the sizes of the HR patches.

    Args:
        data: The stage's data.
        scale: Upscaling factor.
        min_side: Smallest LR side that the network accepts, pixels.

    Raises:
        RecipeError: A side is not a multiple of the scale, or smaller than the network accepts.
    """
    for height, width in data.all_patch_sizes:
        if height % scale or width % scale or min(height, width) < scale * min_side:
            raise RecipeError(
                f"HR patches of {height}x{width} do not fit the network, which is for x{scale}",
                rule=f"height and width of an HR patch are multiples of {scale}, the scale, and at "
                f"least {scale * min_side}",
                remedy="change data.hr_patch_sizes",
            )
