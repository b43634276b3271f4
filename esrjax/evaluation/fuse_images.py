"""Fusion of image files: images of the same name in several folders -> one folder."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from esrjax.data.image_io import (
    SUFFIXES,
    Pixels,
    find_images,
    read_image,
    read_image_size,
    write_image,
)
from esrjax.errors import InvalidArgument

FuseFn = Callable[[Sequence[Pixels]], Pixels]  # images of one size -> their fusion

MAX_NAMES = 5  # in an error, before "and N more"


@dataclass(frozen=True, kw_only=True)
class FusionJob:
    """Image files to fuse, and the file to write."""

    sources: tuple[Path, ...]
    target: Path


def plan_fusion_jobs(inputs: Sequence[Path], output: Path) -> tuple[FusionJob, ...]:
    """Return a job for every image name that the folders share, or one for single images.

    Args:
        inputs: Two or more folders with the same image names, or two or more images.
        output: A folder; for single images also an image file.

    Raises:
        InvalidArgument: If names do not match, or a source would be overwritten.
    """
    jobs = _plan(inputs, output)
    sources = {source.resolve() for job in jobs for source in job.sources}
    if overwritten := [job.target for job in jobs if job.target.resolve() in sources]:
        problem = f"'{overwritten[0]}' would be overwritten, but is one of the images to fuse"
        raise _bad_fusion(problem, "", "give another output with -o")
    return jobs


def _plan(inputs: Sequence[Path], output: Path) -> tuple[FusionJob, ...]:
    if len(inputs) < 2:
        raise _bad_fusion("only one image or folder is given", "", "give two or more")
    if not any(path.is_dir() for path in inputs):
        sources = tuple(find_images([path])[0] for path in inputs)
        is_file = output.suffix.lower() in SUFFIXES
        target = output if is_file else output / f"{sources[0].stem}.png"
        return (FusionJob(sources=sources, target=target),)
    folders = [_images_by_stem(path) for path in inputs]
    _check_equal_names(inputs, folders)
    if output.suffix.lower() in SUFFIXES:
        raise _bad_fusion(f"'{output}' is an image file name", "", "give a folder with -o")
    return tuple(
        FusionJob(sources=tuple(folder[name] for folder in folders), target=output / f"{name}.png")
        for name in sorted(folders[0])
    )


def fuse_files(job: FusionJob, fuse: FuseFn) -> None:
    """Read the images of a job, fuse them and write the result."""
    write_image(job.target, fuse([read_image(source).pixels for source in job.sources]))


def check_equal_sizes(jobs: Sequence[FusionJob]) -> None:
    """Raise `InvalidArgument` unless the images of every job have one size, by their headers."""
    for job in jobs:
        sizes = [f"{height}x{width}" for height, width in map(read_image_size, job.sources)]
        if len(set(sizes)) > 1:
            raise _bad_fusion(
                f"the images are {', '.join(sizes)} (height x width)",
                ", ".join(map(str, job.sources)),
                "fuse images of one size, upscaled from the same LR image",
            )


def check_weights(weights: Sequence[float], inputs: Sequence[Path]) -> None:
    """Raise `InvalidArgument` unless every input has a weight >= 0 and their sum is positive."""
    values = ", ".join(f"{weight:g}" for weight in weights)
    is_valid = len(weights) == len(inputs) and all(math.isfinite(w) and w >= 0 for w in weights)
    if not is_valid or not sum(weights):
        raise _bad_fusion(
            f"Invalid weights {values} for {len(inputs)} images or folders",
            "",
            "give one weight for each input, none negative and at least one positive",
        )


def _images_by_stem(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by stem; `a.png` and `a.jpg` together are an error."""
    files: dict[str, Path] = {}
    for path in find_images([folder]):
        if path.stem in files:
            problem = f"'{folder}' contains two images {path.stem!r}"
            raise _bad_fusion(problem, str(path), "remove one of them")
        files[path.stem] = path
    return files


def _check_equal_names(inputs: Sequence[Path], folders: Sequence[dict[str, Path]]) -> None:
    all_names = set[str]().union(*folders)
    problems = [
        f"missing in '{path}': {', '.join(missing[:MAX_NAMES])}"
        + (f" and {len(missing) - MAX_NAMES} more" if len(missing) > MAX_NAMES else "")
        for path, folder in zip(inputs, folders, strict=True)
        if (missing := sorted(all_names - set(folder)))
    ]
    if problems:
        remedy = "add the missing images, or remove those of the same name elsewhere"
        raise _bad_fusion("; ".join(problems), ", ".join(map(str, inputs)), remedy)


def _bad_fusion(problem: str, location: str, remedy: str) -> InvalidArgument:
    return InvalidArgument(
        problem,
        location=location or None,
        rule="images are fused by name: all folders have the same image names and sizes",
        remedy=remedy,
    )
