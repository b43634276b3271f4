"""Image files, read as 8-bit RGB: reading, writing, and a map that computes ahead."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from esrjax.data.image_decode import (
    FORMATS,
    ImageSource,
    RawPixels,
    UnsupportedSamples,
    decode_raw,
    read_upright_size,
)
from esrjax.data.image_encode import (
    SUFFIXES,
    Band,
    ImageEncoder,
    Shape,
    check_storable,
    format_of,
    open_encoder,
)
from esrjax.data.image_metadata import ImageMetadata, profile_to_srgb
from esrjax.errors import UnreadableFile, UnwritableFile
from esrjax.io import atomic_write

Pixels = NDArray[np.uint8]  # (h, w, 3), RGB
Alpha = NDArray[np.uint8]  # (h, w), 255 is opaque
Item = TypeVar("Item")
Output = TypeVar("Output")


_OTHER_SUFFIXES = (".heic", ".heif", ".jxl", ".exr", ".hdr", ".svg")  # images unknown to Pillow
_CANNOT_STORE = {"JPEG": ("alpha",), "BMP": ("alpha", "exif"), "WEBP": ("dpi",)}
_PART_NAMES = {
    "alpha": "transparency: composited over white",
    "exif": "EXIF data",
    "dpi": "the resolution in dpi",
}
_BAND_BYTES = 1 << 22  # of a whole image that is written in bands, about
_REMEDY = "choose another file name or folder"
NOTE_GRAY = "grey repeated in three channels"
NOTE_ALPHA = "transparency composited over white"


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image as read from a file.

    Attributes:
        pixels: (h, w, 3) uint8, RGB, composited over white where the file is transparent.
        notes: What was lost or changed when decoding, for instance rounding from 16 bits; one
            sentence each, empty if nothing was.
        alpha: (h, w) uint8, 255 is opaque; None if every pixel is.
        metadata: What `write_image` can store beside the pixels. It has notes of its own, which
            matter where the image is written again.
    """

    pixels: Pixels
    notes: tuple[str, ...] = ()
    alpha: Alpha | None = None
    metadata: ImageMetadata = field(default_factory=ImageMetadata)


def read_image(
    source: str | ImageSource, location: object = None, *, apply_profile: bool = True
) -> DecodedImage:
    """Read an image file as 8-bit RGB.

    EXIF orientation is applied, colours are converted from an ICC profile to sRGB, transparency is
    composited over white, gray is repeated in three channels, and 16 bits per channel are rounded
    to 8. Every such change is a note of the result.

    Args:
        source: A file in one of the `FORMATS`, or the bytes of one; its suffix is not looked at.
        location: What error messages call the source; by default its path.
        apply_profile: Whether an ICC profile is applied, so that colours look as they should. With
            False the levels are those of the file, as other programs score and train on them.

    Returns:
        The image, (h, w, 3) uint8.

    Raises:
        UnreadableFile: If the file is missing, damaged or not an image.
    """
    raw = _try_decoding(decode_raw, source, location)
    colors, alpha, notes = raw.samples, None, raw.notes
    if colors.shape[2] < 3:
        notes = (NOTE_GRAY, *notes)
    if colors.shape[2] in (2, 4):
        colors, alpha = colors[..., :-1], colors[..., -1:]
    if raw.icc_profile:
        converted, note = profile_to_srgb(_to_8bit(colors), raw.icc_profile, convert=apply_profile)
        notes = (*notes, *filter(None, [note]))
        if converted is not None:
            colors, alpha = converted, None if alpha is None else _to_8bit(alpha)
    white = np.iinfo(colors.dtype).max
    if alpha is None or (alpha == white).all():  # an opaque alpha channel is dropped without note
        return DecodedImage(pixels=_to_rgb8(colors), notes=notes, metadata=raw.metadata)
    return DecodedImage(
        pixels=_to_rgb8(composite_over_white(colors, alpha, white)),
        notes=(*notes, NOTE_ALPHA),
        alpha=_to_8bit(alpha)[..., 0],
        metadata=raw.metadata,
    )


def read_image_size(
    source: str | ImageSource, location: object = None, *, is_limited: bool = True
) -> tuple[int, int]:
    """Return (h, w) of the image in a file, in pixels, after EXIF orientation.

    Only the header is read.

    Args:
        source: As of `read_image`.
        location: As of `read_image`.
        is_limited: Whether an image too large to be read, of more than 179 million pixels, is an
            error.

    Raises:
        UnreadableFile: If the file is missing, damaged or not an image.
    """
    return _try_decoding(partial(read_upright_size, is_limited=is_limited), source, location)


def _try_decoding(
    decode: Callable[[ImageSource], Output], source: str | ImageSource, location: object
) -> Output:
    """Return `decode(source)`; all that it raises becomes an `UnreadableFile`."""
    if not isinstance(source, bytes):
        source = Path(source)
        location = location or source
        _check_is_file(source)
    try:
        return decode(source)
    except UnidentifiedImageError as error:
        raise _unreadable(location, "its content is not an image") from error
    except UnsupportedSamples as error:
        raise UnreadableFile(
            f"Cannot read '{location}': {error}",
            rule="samples are unsigned integers of 1 to 8 or 16 bits, grey (in a TIFF also of 12 "
            "bits, black at 0) or RGB, in a PNG also with alpha",
            remedy="convert the image to a PNG of 8 or 16 bits in the program that wrote it",
        ) from error
    except Exception as error:  # on damaged files Pillow raises almost any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _unreadable(location, reason) from error


def _check_is_file(path: Path) -> None:
    if not os.path.exists(path):  # unlike Path.exists, without error for names that are too long
        raise _unreadable(path, "no such file", "check the path")
    if path.is_dir():
        raise _unreadable(path, "it is a folder", "give the path of an image in it")
    if not path.is_file():
        raise _unreadable(path, "it is a device or a pipe, not a file", "give the path of a file")
    if not path.stat().st_size:
        raise _unreadable(path, "the file is empty")


def _unreadable(
    location: object, reason: str, remedy: str = "save the file again, or download it again"
) -> UnreadableFile:
    rule = f"an image is a complete file in one of the formats {', '.join(FORMATS)}"
    return UnreadableFile(f"Cannot read '{location}': {reason}", rule=rule, remedy=remedy)


def composite_over_white(colors: RawPixels, alpha: RawPixels, white: int) -> RawPixels:
    """Return alpha * color + (1 - alpha) * white, in integers, rounded half up.

    Args:
        colors: (h, w, C), 8 or 16 bits.
        alpha: (h, w, 1) of the same levels.
        white: Their largest one.
    """
    opacity = alpha.astype(np.int64)
    blended = (colors * opacity + white * (white - opacity) + white // 2) // white
    return blended.astype(colors.dtype)


def remove_white(pixels: Pixels, alpha: Alpha) -> Pixels:
    """Return the colors that composited over white give `pixels`; white where alpha is 0.

    Args:
        pixels: (h, w, 3) uint8, RGB.
        alpha: (h, w) uint8, 255 is opaque.
    """
    opacity = np.maximum(alpha, 1)[..., None] / np.float32(255)
    return np.clip(np.rint(255 - (255 - pixels) / opacity), 0, 255).astype(np.uint8)


def _to_rgb8(raw: RawPixels) -> Pixels:
    """Convert (h, w, 1 or 3) of 8 or 16 bits to (h, w, 3) uint8."""
    rgb = np.broadcast_to(_to_8bit(raw), (*raw.shape[:2], 3))
    return np.require(rgb, np.uint8, ["C_CONTIGUOUS", "WRITEABLE"])


def _to_8bit(raw: RawPixels) -> NDArray[np.uint8]:
    """Round 16 bits to round(value / 257), because 65535 = 257 * 255; a shift would truncate."""
    if raw.dtype == np.uint16:
        return ((raw.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return raw.astype(np.uint8, copy=False)


def write_image(
    path: str | Path,
    pixels: Pixels,
    alpha: Alpha | None = None,
    metadata: ImageMetadata | None = None,
) -> tuple[str, ...]:
    """Write an image file atomically; folders are created.

    Args:
        path: The suffix chooses the format (see `SUFFIXES`).
        pixels: (h, w, 3) uint8, RGB; with `alpha` composited over white, as `read_image` returns
            them. The file has the colors before that, so that reading it returns `pixels` again.
        alpha: (h, w) uint8, 255 is opaque.
        metadata: EXIF block and resolution to store.

    Returns:
        Notes on what the format cannot store.

    Raises:
        UnwritableFile: If the suffix, an array or the folder does not allow it. An existing file is
            then left as it was.
    """
    path = Path(path)
    _check_suffix(path)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise _unwritable(path, f"the array is {pixels.dtype} {pixels.shape}")
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != pixels.shape[:2]):
        raise _unwritable(path, f"alpha is {alpha.dtype} {alpha.shape} for {pixels.shape}")
    h, w = pixels.shape[:2]
    is_lost = alpha is not None and not has_alpha(path)
    bands = _bands(pixels, None if is_lost else alpha)
    notes = write_bands(path, (h, w), bands, metadata)
    return (*([_lost_note(path, "alpha")] * is_lost), *notes)


def _bands(pixels: Pixels, alpha: Alpha | None) -> Iterator[Band]:
    """Yield an image in bands, with alpha in colors before they were composited over white."""
    step = max(1, _BAND_BYTES // (3 * pixels.shape[1]))
    for rows in (slice(start, start + step) for start in range(0, len(pixels), step)):
        band = pixels[rows]
        yield band if alpha is None else np.dstack([remove_white(band, alpha[rows]), alpha[rows]])


def write_bands(
    path: str | Path,
    size: tuple[int, int],
    bands: Iterable[Band],
    metadata: ImageMetadata | None = None,
) -> tuple[str, ...]:
    """Write an image file atomically from bands of its rows; folders are created.

    A band is encoded in a thread while the next one is computed. PNG, TIFF and BMP hold these two
    bands in memory; JPEG and WebP the whole image, 4 bytes a pixel.

    Args:
        path: The suffix chooses the format (see `SUFFIXES`).
        size: (h, w) of the image, pixels.
        bands: (rows, w, 3) uint8, RGB, or (rows, w, 4) with alpha, from top to bottom. If computing
            one raises, no file is written.
        metadata: EXIF block and resolution to store.

    Returns:
        Notes on what the format cannot store.

    Raises:
        UnwritableFile: If the suffix, the size, a band or the folder does not allow it. An existing
            file is then left as it was.
    """
    path, metadata, bands = Path(path), metadata or ImageMetadata(), iter(bands)
    _check_suffix(path)
    check_storable(path, size)
    format_name, cannot_store = format_of(path), _CANNOT_STORE.get(format_of(path), ())
    parts = [part for part in ("exif", "dpi") if getattr(metadata, part)]
    stored = {part: getattr(metadata, part) for part in parts if part not in cannot_store}
    first = next(bands, np.empty((0, size[1], 3), np.uint8))
    shape = (*size, first.shape[-1])
    with atomic_write(path, _REMEDY) as partial, open(partial, "wb") as file:
        encoder = open_encoder(format_name, file, shape, ImageMetadata(**stored))
        _encode(path, encoder, shape, itertools.chain([first], bands))
    return tuple(_lost_note(path, part) for part in parts if part not in stored)


def _encode(path: Path, encoder: ImageEncoder, shape: Shape, bands: Iterable[Band]) -> None:
    """Encode bands in a thread, one ahead of it."""
    rows_left, encoding = shape[0], None
    with ThreadPoolExecutor(1) as executor:
        for band in bands:
            rows_left -= len(band)
            if band.dtype != np.uint8 or band.shape[1:] != shape[1:] or rows_left < 0:
                raise _unwritable(path, f"a band is {band.dtype} {band.shape} of {shape}")
            if encoding is not None:
                encoding.result()
            encoding = executor.submit(encoder.write, band)
        if rows_left or encoding is None:
            raise _unwritable(path, f"the bands lack {rows_left} rows of {shape}")
        encoding.result()
    encoder.close()


def _lost_note(path: Path, part: str) -> str:
    return f"{format_of(path)} cannot store {_PART_NAMES[part]}"


def is_file_output(output: Path, num_images: int, *, is_single: bool) -> bool:
    """Return whether images are written to the file `output`, or into a folder of this name.

    Args:
        output: An image file, or a folder that exists or is new.
        num_images: How many images are written.
        is_single: Whether it is one image that can be written to a file: not that of a folder.

    Raises:
        UnwritableFile: If several images would be written to one file, or a new folder would look
            like a file of a format that is not written.
    """
    suffix = output.suffix.lower()
    if os.path.isdir(output) or not suffix:
        return False
    if suffix in SUFFIXES and is_single:
        return True
    if suffix in SUFFIXES:
        images = "the images of a folder" if num_images == 1 else f"{num_images} images"
        problem = f"Cannot write {images} to one file '{output}'"
    elif is_single or suffix in (*Image.registered_extensions(), *_OTHER_SUFFIXES):
        problem = f"Unsupported output format {output.suffix!r}"
    else:
        return False
    raise UnwritableFile(
        problem,
        location=str(output),
        rule="a single image is written to a file or a folder, several to a folder by their names; "
        f"files have the suffix {', '.join(SUFFIXES)}",
        remedy="give a folder with -o; one that exists may have any name",
    )


def has_alpha(path: Path) -> bool:
    """Return whether the format of a file to write, known by its suffix, stores transparency."""
    return "alpha" not in _CANNOT_STORE.get(format_of(path), ())


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise _unwritable(path, f"unsupported suffix '{path.suffix}'")


def _unwritable(path: Path, reason: str) -> UnwritableFile:
    rule = f"images are (h, w, 3) uint8, written to files with the suffix {', '.join(SUFFIXES)}"
    remedy = "choose another file name or folder, or correct the array"
    return UnwritableFile(f"Cannot write '{path}': {reason}", rule=rule, remedy=remedy)


def list_images(folder: Path) -> tuple[Path, ...]:
    """Return the images of a folder, recognized by suffix, sorted; hidden files are skipped."""
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
    )


# --- map over items, computed ahead by threads ---


def prefetch_map(
    fn: Callable[[Item], Output], items: Sequence[Item], buffer_size: int = 2
) -> Iterator[Output]:
    """Yield `fn(item)` in the order of the items, computed ahead by two threads.

    Args:
        fn: Called from several threads.
        items: What it is called with.
        buffer_size: How many results are held in memory at most.
    """
    import grain  # imports JAX

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=buffer_size)
    source: Any = grain.MapDataset.range(len(items)).map(lambda index: fn(items[index]))
    return iter(source.to_iter_dataset(options))
