"""Input pipelines: patches cropped by the host, or by the devices from images in their memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from esrjax.errors import RecipeError
from esrjax.training.distributed import DataParallel
from esrjax.training.loader import GIB, Batches, PatchSampler, open_batches
from esrjax.training.recipe import Data

ImageBatch = tuple[Array, Array]  # LR (n, h, w, 3) and HR (n, s·h, s·w, 3), uint8


@dataclass(frozen=True, kw_only=True, eq=False)
class HostPipeline:
    """Pipeline that crops on the host; flips and channel shuffle run on the devices.

    Attributes:
        batches: The cropped batches.
        data_parallel: The devices to shard over.
    """

    batches: Batches
    data_parallel: DataParallel

    def iter_from(self, step: int, stop: int) -> Iterator[ImageBatch]:
        """Yield LR and HR of the steps from `step` up to `stop`, sharded by patch."""
        # Closed as soon as this generator is, so that worker processes do not outlive the stage.
        with closing(self.batches.iter_from(step, stop)) as source:
            for patches in source:
                yield _augment_pair(**self.data_parallel.shard(patches))


@dataclass(frozen=True, kw_only=True, eq=False)
class DevicePipeline:
    """Pipeline that crops on the devices, each of which keeps all images in its memory.

    The host sends only the draw of each step (image, corner, flips of each patch), the same draw
    that `HostPipeline` crops by, so both yield equal batches. All images are stacked into one
    array, because images of different sizes cannot be indexed inside a jitted function.

    Attributes:
        sampler: What is drawn for each step.
        lr_atlas: (rows, width, 3), uint8: the LR images below each other, padded with zeros on the
            right.
        hr_atlas: (s·rows, s·width, 3), uint8: the HR images likewise.
        first_rows: (N,), first row of each image in `lr_atlas`.
        data_parallel: The devices to shard over.
    """

    sampler: PatchSampler
    lr_atlas: Array
    hr_atlas: Array
    first_rows: np.ndarray[Any, np.dtype[np.int32]]
    data_parallel: DataParallel

    @classmethod
    def create(cls, batches: Batches, data_parallel: DataParallel) -> DevicePipeline:
        """Return the pipeline of the same batches, with all images copied to every device.

        Raises:
            RecipeError: They do not fit.
        """
        heights, width = batches.sampler.lr_sizes[:, 0], int(batches.sampler.lr_sizes[:, 1].max())
        s, rows = batches.sampler.scale, int(heights.sum(dtype=np.int64))
        _check_memory(3 * rows * width * (1 + s * s))  # bytes of both atlases, uint8
        first_rows = np.cumsum(heights, dtype=np.int32) - heights
        atlases = [np.zeros((k * rows, k * width, 3), np.uint8) for k in (1, s)]
        for row, pair in zip(first_rows, batches.images, strict=True):
            for k, atlas, image in zip((1, s), atlases, pair, strict=True):
                atlas[k * row : k * row + image.shape[0], : image.shape[1]] = image
        lr, hr = map(data_parallel.replicate_host, atlases)
        return cls(
            sampler=batches.sampler,
            lr_atlas=lr,
            hr_atlas=hr,
            first_rows=first_rows,
            data_parallel=data_parallel,
        )

    def iter_from(self, step: int, stop: int) -> Iterator[ImageBatch]:
        """Yield LR and HR of the steps from `step` up to `stop`, sharded by patch."""
        any_transpose = "rot90" in self.sampler.data.augment
        for spec in map(self.sampler.sample, range(step, stop)):
            names = ("left", "transpose", "vflip", "hflip", "channel_order")
            arrays = {name: getattr(spec, name) for name in names}
            arrays["row"] = self.first_rows[spec.image_index] + spec.top
            yield _crop_pair(
                self.lr_atlas,
                self.hr_atlas,
                self.sampler.scale,
                spec.lr_patch_size,
                any_transpose,
                **self.data_parallel.shard(arrays),
            )


def open_pipeline(
    data: Data, scale: int, seed: int, data_parallel: DataParallel, shard: tuple[int, int] = (0, 1)
) -> HostPipeline | DevicePipeline:
    """Return the input pipeline of a stage.

    Args:
        data: The stage's data.
        scale: Upscaling factor.
        seed: Seed of the sampler.
        data_parallel: The devices to shard over.
        shard: `(i, n)`: this process supplies the i-th of n equal parts of every batch.
    """
    batches = open_batches(data, scale, seed, shard)
    if data.crop_on == "device":
        return DevicePipeline.create(batches, data_parallel)
    return HostPipeline(batches=batches, data_parallel=data_parallel)


@jax.jit
def _augment_pair(lr: Array, hr: Array, **flips_and_channels: Array) -> ImageBatch:
    return _augment(lr, **flips_and_channels), _augment(hr, **flips_and_channels)


def _augment(patches: Array, *, vflip: Array, hflip: Array, channel_order: Array) -> Array:
    """Flip the patches (n, h, w, 3) where `vflip` and `hflip` are true, and reorder channels."""
    # Select between both variants: a patch-wise branch would not vectorize.
    patches = jnp.where(vflip[:, None, None, None], patches[:, ::-1], patches)
    patches = jnp.where(hflip[:, None, None, None], patches[:, :, ::-1], patches)
    red, green, blue = jnp.split(patches, 3, axis=-1)
    channel = channel_order[:, None, None, :]
    return jnp.where(channel == 0, red, jnp.where(channel == 1, green, blue))


@partial(jax.jit, static_argnums=(2, 3, 4))
def _crop_pair(
    lr_atlas: Array,
    hr_atlas: Array,
    scale: int,
    lr_patch_size: tuple[int, int],
    any_transpose: bool,
    *,
    row: Array,
    left: Array,
    transpose: Array,
    **flips_and_channels: Array,
) -> ImageBatch:
    """Crop and augment the patches of one draw; `row` and `left` are in the LR atlas.

    any_transpose: Whether patches may be transposed; without it the second crop is not compiled.

    Shapes are static, so every patch is cropped in both orientations and one of them is discarded.
    The discarded one may reach beyond its image, into the next one of the atlas.
    """

    def crop(atlas: Array, s: int) -> Array:
        h, w = s * lr_patch_size[0], s * lr_patch_size[1]
        patches = _crop(atlas, s * row, s * left, (h, w))
        if not any_transpose:
            return patches
        transposed = _crop(atlas, s * row, s * left, (w, h)).swapaxes(1, 2)
        return jnp.where(transpose[:, None, None, None], transposed, patches)

    return _augment_pair(crop(lr_atlas, 1), crop(hr_atlas, scale), **flips_and_channels)


def _crop(atlas: Array, row: Array, left: Array, patch_size: tuple[int, int]) -> Array:
    """Return crops (n, h, w, 3) of the atlas (rows, width, 3).

    `lax.dynamic_slice` moves a crop that would leave the atlas back into it, without an error.
    """
    zero, sizes = jnp.zeros((), row.dtype), (*patch_size, 3)
    return jax.vmap(lambda r, c: lax.dynamic_slice(atlas, (r, c, zero), sizes))(row, left)


def _check_memory(num_bytes: int) -> None:
    """Raise if the images exceed the free memory of a device; not every backend reports it."""
    all_stats = [device.memory_stats() or {} for device in jax.local_devices()]
    free_bytes = min(s.get("bytes_limit", math.inf) - s.get("bytes_in_use", 0) for s in all_stats)
    if num_bytes > free_bytes:
        raise RecipeError(
            f"the images take {num_bytes / GIB:.1f} GiB, a device has {free_bytes / GIB:.1f} GiB "
            "free",
            rule='with data.crop_on = "device", all images of the stage fit into each device',
            remedy='set data.crop_on = "host", or train on parts of datasets: "DIV2K[:400]"',
        )
