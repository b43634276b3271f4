"""Input pipelines: patches cropped by the host, or by the devices from images in their memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from esrjax.errors import RecipeError
from esrjax.training.distributed import DataParallel
from esrjax.training.loader import GIB, Batches, PatchBatchSpec

ImageBatch = tuple[Array, Array]  # LR (n, h, w, 3) and HR (n, s·h, s·w, 3), uint8


def image_batches(
    batches: Batches, data_parallel: DataParallel, step: int, stop: int
) -> Iterator[ImageBatch]:
    """Return LR and HR of the steps from `step` up to `stop`, sharded by patch.

    The host crops, or the devices do, as `data.crop_on` says; both yield equal batches. Flips and
    channel shuffle always run on the devices.

    Args:
        batches: The batches of the stage.
        data_parallel: The devices to shard over.
        step: First step, from 0.
        stop: Step after the last one.

    Raises:
        RecipeError: The devices are to crop, and the images do not fit into their memory.
    """
    sampler = batches.sampler
    if sampler.data.crop_on == "device":
        return map(_device_crop(batches, data_parallel), map(sampler.sample, range(step, stop)))
    return _host_batches(batches, data_parallel, step, stop)


def _host_batches(
    batches: Batches, data_parallel: DataParallel, step: int, stop: int
) -> Iterator[ImageBatch]:
    # Closed as soon as this generator is, so that worker processes do not outlive the stage.
    with closing(batches.iter_from(step, stop)) as source:
        for patches in source:
            yield _augment_pair(**data_parallel.shard(patches))


def _device_crop(
    batches: Batches, data_parallel: DataParallel
) -> Callable[[PatchBatchSpec], ImageBatch]:
    """Copy all images to every device; return the function that crops the patches of a step there.

    The host sends only the draw of each step (image, corner, flips of each patch). All images are
    stacked into one atlas, because images of different sizes cannot be indexed inside a jitted
    function: below each other, (rows, width, 3), uint8, padded with zeros on the right.
    """
    sampler, s = batches.sampler, batches.sampler.scale
    heights, width = sampler.lr_sizes[:, 0], int(sampler.lr_sizes[:, 1].max())
    rows = int(heights.sum(dtype=np.int64))
    _check_memory(3 * rows * width * (1 + s * s))  # bytes of both atlases, uint8
    first_rows = np.cumsum(heights, dtype=np.int32) - heights  # of each image in the LR atlas
    atlases = [np.zeros((k * rows, k * width, 3), np.uint8) for k in (1, s)]
    for row, pair in zip(first_rows, batches.images, strict=True):
        for k, atlas, image in zip((1, s), atlases, pair, strict=True):
            atlas[k * row : k * row + image.shape[0], : image.shape[1]] = image
    lr_atlas, hr_atlas = map(data_parallel.replicate_host, atlases)
    any_transpose = "rot90" in sampler.data.augment

    def crop(spec: PatchBatchSpec) -> ImageBatch:
        names = ("left", "transpose", "vflip", "hflip", "channel_order")
        arrays = {name: getattr(spec, name) for name in names}
        arrays["row"] = first_rows[spec.image_index] + spec.top
        shards = data_parallel.shard(arrays)
        return _crop_pair(lr_atlas, hr_atlas, s, spec.lr_patch_size, any_transpose, **shards)

    return crop


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
