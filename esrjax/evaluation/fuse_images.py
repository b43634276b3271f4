"""Fusion of image files of the same name in several folders: jobs, checks, execution."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from esrjax.data import image_io
from esrjax.data.image_io import Pixels, is_file_output
from esrjax.data.image_search import ImageSearch, search_images
from esrjax.errors import InvalidArgument, list_some
from esrjax.io import check_outputs, check_writable

FuseFn = Callable[[Sequence[Pixels]], Pixels]  # images of one size -> their fusion


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
