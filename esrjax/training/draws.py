"""Random choice of the patches of a batch, a function of seed and step alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import grain
import numpy as np
from numpy.typing import NDArray

from esrjax.training.recipe import Data

Int32Array = NDArray[np.int32]
BoolArray = NDArray[np.bool_]


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

        Grain computes the i-th element without those before it, and shuffles every epoch anew.
        With weights, every dataset has shuffled epochs of its own, and they are mixed by weight.
        """
        weights = list(self.data.dataset_weights.values())
        if None in weights:
            return self._shuffled_indices(0, len(self.lr_sizes))
        ends = list(accumulate(self.dataset_lengths))
        starts = [end - count for end, count in zip(ends, self.dataset_lengths, strict=True)]
        datasets = [self._shuffled_indices(*span) for span in zip(starts, ends, strict=True)]
        return grain.MapDataset.mix(datasets, [weight or 0.0 for weight in weights])

    def _shuffled_indices(self, start: int, end: int) -> Any:
        return grain.MapDataset.range(start, end).shuffle(seed=self.seed).repeat()

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
