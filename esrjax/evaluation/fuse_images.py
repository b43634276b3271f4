"""Fusion of images: blends and means, and jobs on files of the same name in several folders."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrjax.data import image_io
from esrjax.data.image_io import Pixels, is_file_output
from esrjax.data.image_search import ImageSearch, search_images
from esrjax.errors import InvalidArgument, list_some
from esrjax.evaluation.metrics import to_uint8
from esrjax.evaluation.upscale import FloatImage
from esrjax.io import check_outputs, check_writable

FuseFn = Callable[[Sequence[Pixels]], Pixels]  # images of one size -> their fusion
BlendFn = Callable[[Sequence[FloatImage]], FloatImage]  # the same of floats in [0, 1]


@dataclass(frozen=True, kw_only=True)
class FusionJob:
    """Image files to fuse, and the file to write."""

    sources: tuple[Path, ...]
    target: Path


@dataclass(frozen=True, kw_only=True)
class FusionPlan:
    """The jobs, and notes on what the folders contain and is not taken."""

    jobs: tuple[FusionJob, ...]
    notes: tuple[str, ...] = ()


def plan_fusion_jobs(inputs: Sequence[Path], output: Path) -> FusionPlan:
    """Return a job for every image name that the folders share, or one for single images.

    Args:
        inputs: Two or more folders with the same image names, or two or more images.
        output: A folder; for single images also an image file.

    Raises:
        InvalidArgument: If names do not match.
        UnwritableFile: If a source would be overwritten, or an image cannot be written there.
    """
    if len(inputs) < 2:
        raise _bad_fusion("only one image or folder is given", "give two or more")
    searches = [search_images([path]) for path in inputs]
    has_folders = any(path.is_dir() for path in inputs)
    num_images = max(len(search.images) for search in searches)
    if is_file_output(output, num_images, is_single=not has_folders):
        jobs = (FusionJob(sources=tuple(inputs), target=output),)
    elif has_folders:
        jobs = _plan_folders(inputs, searches, output)
    else:
        jobs = (FusionJob(sources=tuple(inputs), target=output / f"{inputs[0].stem}.png"),)
    check_outputs([job.target for job in jobs], [path for job in jobs for path in job.sources])
    for job in jobs:
        check_writable(job.target)
    notes_of = {path: search.notes for path, search in zip(inputs, searches, strict=True)}
    notes = [f"{path}: {note}" for path, notes in notes_of.items() for note in notes]
    return FusionPlan(jobs=jobs, notes=tuple(notes))


def _plan_folders(
    inputs: Sequence[Path], searches: Sequence[ImageSearch], output: Path
) -> tuple[FusionJob, ...]:
    folders = {p: _images_by_stem(p, s.images) for p, s in zip(inputs, searches, strict=True)}
    names = sorted(set[str]().union(*folders.values()))
    missing = {path: [n for n in names if n not in files] for path, files in folders.items()}
    if any(missing.values()):
        raise _bad_fusion(
            "; ".join(f"missing in '{path}': {list_some(m)}" for path, m in missing.items() if m),
            "add the missing images, or remove those of the same name elsewhere",
            location=", ".join(map(str, inputs)),
        )
    return tuple(
        FusionJob(
            sources=tuple(folders[path][name] for path in inputs), target=output / f"{name}.png"
        )
        for name in names
    )


def _images_by_stem(folder: Path, images: Iterable[Path]) -> dict[str, Path]:
    """Return the images of a folder by stem; `a.png` and `a.jpg` together are an error."""
    files: dict[str, Path] = {}
    for path in images:
        if files.setdefault(path.stem, path) != path:
            problem = f"'{folder}' contains two images {path.stem!r}"
            raise _bad_fusion(problem, "remove one of them", location=str(path))
    return files


def check_equal_sizes(jobs: Sequence[FusionJob]) -> None:
    """Raise `InvalidArgument` unless the images of every job have one size, by their headers."""
    for job in jobs:
        sizes = [f"{h}x{w}" for h, w in map(image_io.read_image_size, job.sources)]
        if len(set(sizes)) > 1:
            raise _bad_fusion(
                f"the images are {', '.join(sizes)} (height x width)",
                "fuse images of one size, upscaled from the same LR image",
                location=", ".join(map(str, job.sources)),
            )


def check_weights(weights: Sequence[float], inputs: Sequence[Path]) -> None:
    """Raise `InvalidArgument` unless every input has a weight >= 0 and their sum is positive."""
    is_valid = len(weights) == len(inputs) and all(math.isfinite(w) and w >= 0 for w in weights)
    if not is_valid or not sum(weights):
        values = ", ".join(f"{weight:g}" for weight in weights)
        raise _bad_fusion(
            f"Invalid weights {values} for {len(inputs)} images or folders",
            "give one weight for each input, none negative and at least one positive",
        )


def fuse_files(job: FusionJob, fuse: FuseFn) -> tuple[str, ...]:
    """Fuse the images of a job and write the result, with the EXIF data and dpi of the first.

    Returns:
        Notes on what reading and writing has changed.
    """
    images = [image_io.read_image(source) for source in job.sources]
    first = images[0].metadata
    lost = image_io.write_image(
        job.target, fuse([image.pixels for image in images]), metadata=first
    )
    notes = [f"{job.target}: {note}" for note in lost]
    for source, image in zip(job.sources, images, strict=True):
        notes += [f"{source}: {note}" for note in (*image.notes, *image.metadata.notes)]
        if (image.metadata.exif, image.metadata.dpi) != (first.exif, first.dpi):
            notes.append(f"{source}: EXIF data and dpi not kept: those of {job.sources[0]} are")
    return tuple(dict.fromkeys(notes))


def _bad_fusion(problem: str, remedy: str, location: str | None = None) -> InvalidArgument:
    rule = "images are fused by name: all folders have the same image names and sizes"
    return InvalidArgument(problem, rule=rule, remedy=remedy, location=location)


# --- blends of the outputs of several upscalers, and means of uint8 images ---


def weighted_blend(weights: Sequence[float]) -> BlendFn:
    """Return the weighted mean as a blend function; the weights are divided by their sum."""
    return lambda images: np.asarray(_weighted_mean(images, weights), np.float32)


def adaptive_blend(images: Sequence[FloatImage]) -> FloatImage:
    """Blend with `adaptive_weighted_mean_uint8`, of the images rounded to uint8.

    Args:
        images: (H, W, 3) floats in [0, 1].

    Returns:
        (H, W, 3) float32 in [0, 1], multiples of 1/255.
    """
    levels = adaptive_weighted_mean_uint8([to_uint8(image, 1.0) for image in images])
    return levels.astype(np.float32) / np.float32(255)


def weighted_mean_uint8(images: Sequence[Pixels], weights: Sequence[float]) -> Pixels:
    """Return the weighted mean of uint8 images, rounded half to even."""
    mean = _weighted_mean([image.astype(np.float64) for image in images], weights)
    return np.rint(mean).astype(np.uint8)


def adaptive_weighted_mean_uint8(images: Sequence[Pixels]) -> Pixels:
    """Return the mean of uint8 images weighted by their closeness to the plain mean, rounded down.

    The weight of an image is `1 / (mean |image - plain mean| + 1e-8)`, normalized to a sum of 1.
    Two images have the same distance from their mean, so that both weights are always 1/2 and the
    result is `floor((a + b) / 2)`. Source: team BBox, NTIRE 2025 image super-resolution, adaptive
    weighted fusion.

    Args:
        images: (H, W, 3) uint8.
    """
    float_images = [image.astype(np.float64) for image in images]
    plain_mean = sum(float_images) / len(float_images)
    closeness = [1 / (np.abs(image - plain_mean).mean() + 1e-8) for image in float_images]
    total = sum(c / sum(closeness) * p for p, c in zip(float_images, closeness, strict=True))
    # Where all images have the same level, the sum may be a rounding error below it, which floor
    # would turn into the level below.
    return np.floor(np.clip(np.round(total, 9), 0, 255)).astype(np.uint8)


def _weighted_mean(images: Sequence[NDArray[Any]], weights: Sequence[float]) -> Any:
    return sum(w * image for image, w in zip(images, weights, strict=True)) / sum(weights)
