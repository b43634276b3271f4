"""Jobs that upscale image files: their plan, all checks that need no pixels, and their execution.

What is wrong with the outputs is an error of the plan, before any work; what is wrong with an input
is a failure of this image alone.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrjax.data import image_io
from esrjax.data.image_encode import check_storable
from esrjax.data.image_io import (
    Alpha,
    Pixels,
    composite_over_white,
    is_file_output,
    remove_white,
)
from esrjax.data.image_search import ImageSearch, search_images
from esrjax.errors import InvalidArgument, UnwritableFile, UserError, list_some
from esrjax.evaluation.upscale import ImageSize, Upscaler, tile_sizes, upscale_bands
from esrjax.io import check_outputs, check_writable


@dataclass(frozen=True, kw_only=True)
class UpscaleJob:
    """One image file to upscale.

    Attributes:
        source: The LR image.
        target: The SR image to write.
        scale: HR size / LR size.
        tile_size: (h, w) of the tiles that it is processed in, LR pixels.
    """

    source: Path
    target: Path
    scale: int
    tile_size: ImageSize


@dataclass(frozen=True, kw_only=True)
class UpscalePlan:
    """What is done with every input.

    Attributes:
        jobs: The images to upscale.
        existing: The images that are skipped, because their output exists.
        failures: The images and folders that cannot be read -> the error.
        notes: What the folders contain and is not taken.
    """

    jobs: tuple[UpscaleJob, ...]
    existing: tuple[Path, ...]
    failures: Mapping[Path, UserError]
    notes: tuple[str, ...]

    @property
    def num_images(self) -> int:
        """Number of images, with those that are skipped or cannot be read."""
        return len(self.jobs) + len(self.existing) + len(self.failures)


@dataclass(frozen=True, kw_only=True)
class OutputNames:
    """How the outputs in a folder are called: NAME + ending + suffix.

    Attributes:
        ending: What follows the name of the input.
        suffix: The suffix of the image format, one of `SUFFIXES`.
    """

    ending: str
    suffix: str = ".png"

    def __post_init__(self):
        if os.path.basename(f"a{self.ending}") != f"a{self.ending}" or "\\" in self.ending:
            raise InvalidArgument(
                f"Invalid ending of file names {self.ending!r}",
                rule="it is a part of a file name, without / and \\",
                remedy="for example x4; name the folder with -o",
            )

    def name(self, source: Path) -> str:
        """Return the file name of the output for an input."""
        return f"{source.stem}{self.ending}{self.suffix}"


def plan_upscale_jobs(
    inputs: Sequence[Path],
    output: Path,
    scale: int,
    max_tile_side: int,
    *,
    names: OutputNames | None = None,
    recursive: bool = False,
    skip_existing: bool = False,
    both_orientations: bool = False,
) -> UpscalePlan:
    """Return a job for every image; their sizes are read from the headers alone.

    Args:
        inputs: Image files and folders of them.
        output: A folder, with the tree of folders that are searched recursively; for a single image
            also a file.
        scale: HR size / LR size.
        max_tile_side: Limit of a tile side, LR pixels.
        names: Names of the outputs in a folder; by default `NAMExSCALE.png`.
        recursive: Whether folders in folders are searched.
        skip_existing: Whether images with an output are skipped.
        both_orientations: Tiles must also serve the transposed images, which self-ensemble and
            windows produce.

    Raises:
        NotFound: If there are no images.
        InvalidArgument: If `names` are given for a single file.
        UnwritableFile: If an output would be an input, cannot be written, or is that of two images.
    """
    search = search_images(inputs, recursive=recursive)
    _check_outside(output, inputs, recursive)
    target_of = _targets(search, inputs, output, names, scale)
    check_outputs(target_of.values(), target_of)
    lr_size_of, existing, failures = dict[Path, ImageSize](), list[Path](), dict(search.failures)
    for source, target in target_of.items():
        try:
            size = image_io.read_image_size(source)
            if skip_existing and os.path.lexists(target):
                _check_existing(target, size, scale)
                existing.append(source)
            else:
                lr_size_of[source] = size
        except UserError as error:
            failures[source] = error
    for source, (h, w) in lr_size_of.items():
        check_writable(target_of[source])
        check_storable(target_of[source], (scale * h, scale * w))
    transposed = [(w, h) for h, w in lr_size_of.values()] * both_orientations
    tile_size_of = tile_sizes([*lr_size_of.values(), *transposed], max_tile_side)
    jobs = tuple(
        UpscaleJob(
            source=source, target=target_of[source], scale=scale, tile_size=tile_size_of[size]
        )
        for source, size in lr_size_of.items()
    )
    return UpscalePlan(jobs=jobs, existing=tuple(existing), failures=failures, notes=search.notes)


def upscale_file(job: UpscaleJob, upscaler: Upscaler) -> tuple[str, ...]:
    """Upscale one file, and return notes on what reading and writing it has changed.

    Bands of an image without transparency go to the file as soon as they are computed.
    """
    image = image_io.read_image(job.source)
    notes = image.notes
    if image.alpha is None or not image_io.has_alpha(job.target):
        h, w = image.pixels.shape[:2]
        bands = upscale_bands(upscaler, image.pixels)
        size = (job.scale * h, job.scale * w)
        lost = image_io.write_bands(job.target, size, bands, image.metadata)
    else:
        upscale: Callable[[Pixels], Pixels] = lambda lr: np.concatenate(  # noqa: E731
            [*upscale_bands(upscaler, lr)]
        )
        pixels, alpha = upscale_transparent(image.pixels, image.alpha, upscale)
        notes = (*(note for note in notes if note != image_io.NOTE_ALPHA), NOTE_UPSCALED)
        lost = image_io.write_image(job.target, pixels, alpha, image.metadata)
    return tuple(f"{job.source}: {note}" for note in (*notes, *image.metadata.notes, *lost))


def _check_outside(output: Path, inputs: Sequence[Path], recursive: bool) -> None:
    """Raise `UnwritableFile` if a folder that is searched would contain the outputs.

    The next run would take them for inputs.
    """
    folders = [path for path in inputs if path.is_dir()]
    parents = Path(os.path.realpath(output)).parents if recursive else ()
    for candidate in filter(os.path.isdir, (output, *parents)):
        for folder in folders:
            if candidate.samefile(folder):
                raise UnwritableFile(
                    f"The outputs would be written into '{folder}', which is an input",
                    rule="images of a folder are written to another folder"
                    + ", outside of it with --recursive" * recursive
                    + ", so that no run takes the outputs of another for inputs",
                    location=str(output),
                    remedy="choose another folder with -o",
                )


def _targets(
    search: ImageSearch, inputs: Sequence[Path], output: Path, names: OutputNames | None, scale: int
) -> dict[Path, Path]:
    """Return source -> target: `output` itself for a single image, else a file in `output`."""
    is_single = len(search.images) == 1 and not any(path.is_dir() for path in inputs)
    if is_file_output(output, len(search.images), is_single=is_single):
        if names is not None:
            raise InvalidArgument(
                f"The output '{output}' is a file, whose name is chosen already",
                rule="a format and an ending belong to the names of the files in a folder",
                remedy="leave --format and --suffix out, or name a folder with -o",
            )
        return dict.fromkeys(search.images, output)
    names = names or OutputNames(ending=f"x{scale}")
    target_of = {
        source: output / folder / names.name(source) for source, folder in search.images.items()
    }
    _check_unique(target_of)
    return target_of


def _check_unique(target_of: Mapping[Path, Path]) -> None:
    """Raise `UnwritableFile` if two images have one output, also through links to folders."""
    source_of: dict[tuple[str, str], Path] = {}
    collisions = [
        f"'{other}' and '{source}' to '{target}'"
        for source, target in target_of.items()
        if (other := source_of.setdefault((os.path.realpath(target.parent), target.name), source))
        != source
    ]
    if collisions:
        raise UnwritableFile(
            f"Several images would be written to one file: {list_some(collisions, 3, '; ')}",
            rule="every image has an output of its own, named by the input without its suffix",
            remedy="upscale them to different folders; with --recursive folders stay apart",
        )


def _check_existing(target: Path, lr_size: ImageSize, scale: int) -> None:
    """Raise `UnwritableFile` unless an output that exists has the size of the upscaled image."""
    h, w = scale * lr_size[0], scale * lr_size[1]
    try:
        size = image_io.read_image_size(target, is_limited=False)
    except UserError:
        size = None
    if size != (h, w):
        actual = "is not an image" if size is None else f"is {size[1]} x {size[0]} pixels"
        raise UnwritableFile(
            f"'{target}' exists, but {actual}; the upscaled image has {w} x {h}",
            rule="an output that is skipped has the size of the upscaled image",
            remedy="delete it, choose another folder, or leave --skip-existing out",
        )


# --- transparent images ---
# Colors and alpha are upscaled separately, both by the network. Measured on shapes with strokes cut
# out of Set5, composited over black: 29.8 dB, and 26.5 dB with a bicubic alpha channel, whose soft
# edges do not lie where the network draws those of the colors.

FILL_RADIUS = 16  # LR pixels around visible pixels; a network sees few colors that are farther away


NOTE_UPSCALED = "transparency upscaled by the network, as a grey image"


def upscale_transparent(
    pixels: Pixels, alpha: Alpha, upscale: Callable[[Pixels], Pixels]
) -> tuple[Pixels, Alpha]:
    """Upscale an image with transparency.

    Args:
        pixels: (h, w, 3) uint8, RGB, composited over white.
        alpha: (h, w) uint8, 255 is opaque.
        upscale: The network, (h, w, 3) uint8 -> (scale·h, scale·w, 3) uint8.

    Returns:
        The upscaled pixels, composited over white, and their alpha.
    """
    colors = upscale(fill_transparent(remove_white(pixels, alpha), alpha))
    upscaled_alpha = upscale_alpha(alpha, upscale)
    composite = composite_over_white(colors, upscaled_alpha[..., None], 255)
    return composite.astype(np.uint8), upscaled_alpha


def upscale_alpha(alpha: Alpha, upscale: Callable[[Pixels], Pixels]) -> Alpha:
    """Return the alpha channel upscaled by a network, as a grey image.

    Where a pixel and its eight neighbours are opaque, or are transparent, the result is exactly so:
    networks differ by some levels there, at the borders of the image most.

    Args:
        alpha: (h, w) uint8, 255 is opaque.
        upscale: (h, w, 3) uint8 -> (scale·h, scale·w, 3) uint8.
    """
    gray = upscale(np.repeat(alpha[..., None], 3, axis=-1)).mean(axis=-1)
    upscaled, scale = np.rint(gray).astype(np.uint8), gray.shape[0] // alpha.shape[0]
    for level in (0, 255):
        is_constant = _sum_3x3(alpha != level) == 0
        upscaled[is_constant.repeat(scale, axis=0).repeat(scale, axis=1)] = level
    return upscaled


def fill_transparent(colors: Pixels, alpha: Alpha) -> Pixels:
    """Return the colors, those of transparent pixels replaced by those of visible neighbours.

    The color of a transparent pixel is arbitrary, and a network would draw the edge to it into the
    visible ones.

    Args:
        colors: (h, w, 3) uint8, RGB, not composited over a background.
        alpha: (h, w) uint8, 0 is transparent.
    """
    is_known: Any = (alpha > 0)[..., None]
    if is_known.all() or not is_known.any():
        return colors
    filled = np.where(is_known, colors, colors[alpha > 0].mean(axis=0)).astype(np.float32)
    for _ in range(FILL_RADIUS):  # a ring of one pixel each time
        if is_known.all():
            break
        counts = _sum_3x3(is_known)
        means = _sum_3x3(np.where(is_known, filled, 0)) / np.maximum(counts, 1)
        filled = np.where(is_known | (counts == 0), filled, means)
        is_known = counts > 0
    return np.rint(filled).astype(np.uint8)


def _sum_3x3(array: NDArray[Any]) -> NDArray[Any]:
    """Return the sums over 3x3 pixels; beyond the borders are zeros."""
    padded = np.pad(array.astype(np.float32), [(1, 1), (1, 1), *[(0, 0)] * (array.ndim - 2)])
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
