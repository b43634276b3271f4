"""Image files, read as 8-bit RGB: reading, writing, and a map that computes ahead."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
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
from esrjax.data.image_metadata import ImageMetadata, profile_to_srgb
from esrjax.errors import UnreadableFile, UnwritableFile
from esrjax.io import write_bytes

Pixels = NDArray[np.uint8]  # (h, w, 3), RGB
Alpha = NDArray[np.uint8]  # (h, w), 255 is opaque
Item = TypeVar("Item")
Output = TypeVar("Output")


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")  # that are written
_OTHER_SUFFIXES = (".heic", ".heif", ".jxl", ".exr", ".hdr", ".svg")  # images unknown to Pillow
_MAX_SIDE = {"JPEG": 65500, "WEBP": 16383}  # pixels, of the libraries that write them
_MAX_BYTES = 2**32 - 2**16  # of BMP and TIFF, which count in 32 bits, without their header
# Lossless where the format allows it, else the best quality. JPEG keeps full chroma resolution
# (subsampling=0, that is 4:4:4).
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
_CANNOT_STORE = {"JPEG": ("alpha",), "BMP": ("alpha", "exif"), "WEBP": ("dpi",)}
_PART_NAMES = {
    "alpha": "transparency: composited over white",
    "exif": "EXIF data",
    "dpi": "the resolution in dpi",
}
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


def read_image_size(source: str | ImageSource, location: object = None) -> tuple[int, int]:
    """Return (h, w) of the image in a file, in pixels, after EXIF orientation.

    Only the header is read.

    Args:
        source: As of `read_image`.
        location: As of `read_image`.

    Raises:
        UnreadableFile: If the file is missing, damaged or not an image.
    """
    return _try_decoding(read_upright_size, source, location)


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
    return np.array(np.broadcast_to(_to_8bit(raw), (*raw.shape[:2], 3)), np.uint8)


def _to_8bit(raw: RawPixels) -> NDArray[np.uint8]:
    """Round 16 bits to round(value / 257), because 65535 = 257 * 255; a shift would truncate."""
    if raw.dtype == np.uint16:
        return ((raw.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return raw.astype(np.uint8)


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
    path, metadata = Path(path), metadata or ImageMetadata()
    if path.suffix.lower() not in SUFFIXES:
        raise _unwritable(path, f"unsupported suffix '{path.suffix}'")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise _unwritable(path, f"the array is {pixels.dtype} {pixels.shape}")
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != pixels.shape[:2]):
        raise _unwritable(path, f"alpha is {alpha.dtype} {alpha.shape} for {pixels.shape}")
    format_name, stream = Image.registered_extensions()[path.suffix.lower()], BytesIO()
    parts = {"alpha": alpha is not None, "exif": bool(metadata.exif), "dpi": bool(metadata.dpi)}
    lost = [part for part in _CANNOT_STORE.get(format_name, ()) if parts[part]]
    image = Image.fromarray(pixels)
    if alpha is not None and "alpha" not in lost:
        image = Image.fromarray(np.dstack([remove_white(pixels, alpha), alpha]))
    options = {key: getattr(metadata, key) for key in ("exif", "dpi") if parts[key]}
    try:
        image.save(stream, format_name, **options, **_SAVE_OPTIONS.get(format_name, {}))
    except (OSError, ValueError) as error:  # sides beyond the limit of the format
        raise _unwritable(path, f"{format_name} cannot store {pixels.shape}: {error}") from error
    write_bytes(path, stream.getvalue(), "choose another file name or folder")
    return tuple(f"{format_name} cannot store {_PART_NAMES[part]}" for part in lost)


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
    format_name = Image.registered_extensions()[path.suffix.lower()]
    return "alpha" not in _CANNOT_STORE.get(format_name, ())


def check_storable(path: Path, size: tuple[int, int]) -> None:
    """Raise `UnwritableFile` if the format of a file cannot store an image of this size.

    Args:
        path: The suffix chooses the format.
        size: (h, w), pixels.
    """
    format_name = Image.registered_extensions()[path.suffix.lower()]
    num_bytes, max_side = 4 * size[0] * size[1], _MAX_SIDE.get(format_name, 2**31 - 1)
    if max(size) > max_side:
        limit = f"sides of at most {max_side} pixels"
    elif format_name in ("BMP", "TIFF") and num_bytes > _MAX_BYTES:
        limit = f"at most {_MAX_BYTES / 2**30:.0f} GiB"
    else:
        return
    raise UnwritableFile(
        f"{format_name} cannot store an image of {size[1]} x {size[0]} pixels",
        rule=f"a {format_name} file has {limit}",
        location=str(path),
        remedy="choose another format, for example PNG",
    )


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
