"""Image files in any mode of Pillow, read as 8-bit RGB: reading, writing, search, prefetching map.

The decoding to raw pixels comes first: 8 or 16 bits, upright, with the alpha channel that a file
has. `read_image` converts them to RGB.
"""

import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import grain
import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from esrjax.errors import NotFound, UnreadableFile, UnwritableFile
from esrjax.io import write_bytes

Pixels = NDArray[np.uint8]  # (h, w, 3), RGB
Item = TypeVar("Item")
Output = TypeVar("Output")
RawPixels = NDArray[np.uint8 | np.uint16]  # (h, w, C): gray, gray + alpha, RGB or RGB + alpha
ImageSource = Path | bytes  # an image file, or the content of one

# Recognized by content, not by suffix. EPS is left out: Pillow would run Ghostscript on it.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")

NOTE_16_BIT = "16 bits per channel rounded to 8"
_CONVERSION_NOTES = {  # PIL mode -> note
    "P": "palette converted to RGB",
    "PA": "palette converted to RGB",
    "CMYK": "CMYK converted to RGB without its color profile",
    "YCbCr": "YCbCr converted to RGB",
    "LAB": "Lab converted to RGB",
}
# Pillow's raw modes of 16 bits per channel: big-endian, little-endian, native.
_RGB16_RAWMODE = re.compile(r"(RGB|RGBX|RGBA);16([BLN])")
_OPPOSITE_ENDIAN = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# EXIF orientation -> number of rotations by 90 degrees counterclockwise; some are then flipped.
_EXIF_ROTATIONS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}
_EXIF_FLIPPED = (2, 4, 5, 7)  # left-right
_open_lock = threading.Lock()


def decode_raw(source: ImageSource) -> tuple[RawPixels, tuple[str, ...]]:
    """Decode the first image of a file, after EXIF orientation.

    Returns:
        (h, w, C) of 8 or 16 bits, and notes on what was lost or changed.

    Raises:
        ValueError: For floating-point pixels, planar 16-bit TIFFs, and values beyond 16 bits; on
            damaged files whatever Pillow raises.
    """
    with _open(source) as image:
        num_frames = getattr(image, "n_frames", 1)
        raw, note = _decode(image, source)
        orientation = _orientation(image)
    raw = np.rot90(raw, _EXIF_ROTATIONS[orientation])
    raw = raw[:, ::-1] if orientation in _EXIF_FLIPPED else raw
    notes = [note, f"first of {num_frames} images in the file" if num_frames > 1 else ""]
    notes += ["rotated or flipped by its EXIF orientation" if orientation > 1 else ""]
    return raw, tuple(filter(None, notes))


def _open(source: ImageSource) -> ImageFile.ImageFile:
    """Open with Pillow, which reads the header; images up to 179 million pixels are accepted.

    Pillow warns from half of that on (decompression bombs) and raises beyond it.
    """
    with _open_lock, warnings.catch_warnings():  # warning filters are global: one thread at a time
        warnings.simplefilter("ignore")
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _decode(image: ImageFile.ImageFile, source: ImageSource) -> tuple[RawPixels, str]:
    rawmode, tags = _rawmode(image), getattr(image, "tag_v2", {})
    # Pillow decodes TIFFs with separate 16-bit planes wrongly: PlanarConfiguration, BitsPerSample.
    is_planar16 = tags.get(284) == 2 and 16 in tags.get(258, ())
    if image.mode == "F" or is_planar16:
        raise ValueError("floating-point pixels and planar 16-bit TIFFs are not supported")
    if image.mode.startswith("I"):
        return _add_key_alpha(_decode_gray16(image), image), NOTE_16_BIT
    if rawmode == "LA;16B":
        return _decode_gray_alpha16(image), NOTE_16_BIT
    if _RGB16_RAWMODE.fullmatch(rawmode):
        return _add_key_alpha(_decode_rgb16(image, source), image), NOTE_16_BIT
    note = "16 bits per channel truncated to 8" if ";16" in rawmode else ""
    return _decode_8bit(image), note or _CONVERSION_NOTES.get(image.mode, "")


def _decode_8bit(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    image.load()
    has_alpha = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA")
    mode = ("L" if image.mode in ("1", "L", "LA") else "RGB") + ("A" if has_alpha else "")
    return np.array(image.convert(mode)).reshape(image.height, image.width, len(mode))


def _decode_gray16(image: ImageFile.ImageFile) -> NDArray[np.uint16]:
    """Return (h, w, 1); Pillow keeps all 16 bits of gray images, sometimes as 32-bit integers."""
    levels = np.array(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its gray levels do not fit into 16 bits")
    return levels.astype(np.uint16)[..., None]


def _decode_gray_alpha16(image: ImageFile.ImageFile) -> NDArray[np.uint16]:
    """Return (h, w, 2).

    Pillow would keep only the upper bytes of gray + alpha; its four bytes a pixel are therefore
    decoded as if they were 8-bit RGBA, and joined in pairs.
    """
    _set_rawmode(image, "RGBA")
    rgba = np.array(image)
    return rgba[..., 0::2] * np.uint16(256) + rgba[..., 1::2]


def _decode_rgb16(image: ImageFile.ImageFile, source: ImageSource) -> NDArray[np.uint16]:
    """Return (h, w, 3 or 4).

    Pillow keeps only the upper byte of 16-bit RGB. The file is decoded twice, the second time with
    the opposite byte order, so that the lower bytes are taken for the upper ones.
    """
    rawmode = _rawmode(image)
    with _open(source) as reopened:
        _set_rawmode(reopened, rawmode[:-1] + _OPPOSITE_ENDIAN[rawmode[-1]])
        lower = np.array(reopened)
    return np.array(image) * np.uint16(256) + lower


def _add_key_alpha(raw: NDArray[np.uint16], image: ImageFile.ImageFile) -> NDArray[np.uint16]:
    """Append an alpha channel that is 0 at the one color that a PNG declares transparent (tRNS)."""
    if "transparency" not in image.info:
        return raw
    is_opaque = (raw != np.array(image.info["transparency"])).any(axis=-1, keepdims=True)
    return np.concatenate([raw, is_opaque * np.uint16(65535)], axis=-1)


def _rawmode(image: ImageFile.ImageFile) -> str:
    """Return Pillow's name for the memory layout of the pixels in the file."""
    args = image.tile[0].args if image.tile else None
    return str(args[0]) if isinstance(args, tuple) and args else str(args)


def _set_rawmode(image: ImageFile.ImageFile, rawmode: str) -> None:
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]


def _orientation(image: ImageFile.ImageFile) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if it is damaged, which is no error."""
    try:
        orientation = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1
    return orientation if orientation in _EXIF_ROTATIONS else 1


# --- reading, writing and search of files ---


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")  # that are written
# Lossless where the format allows it, else the best quality. JPEG keeps full chroma resolution
# (subsampling=0, that is 4:4:4).
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image as read from a file.

    Attributes:
        pixels: (h, w, 3) uint8, RGB.
        notes: What was lost or changed when decoding, for instance rounding from 16 bits; one
            sentence each, empty if nothing was.
    """

    pixels: Pixels
    notes: tuple[str, ...] = ()


def read_image(source: str | ImageSource, location: object = None) -> DecodedImage:
    """Read an image file as 8-bit RGB.

    EXIF orientation is applied, transparency is composited over white, gray is repeated in three
    channels, and 16 bits per channel are rounded to 8. Every such change is a note of the result.

    Args:
        source: A file in one of the `FORMATS`, or the bytes of one; its suffix is not looked at.
        location: What error messages call the source; by default its path.

    Returns:
        The image, (h, w, 3) uint8.

    Raises:
        UnreadableFile: If the file is missing, damaged or not an image.
    """
    raw, notes = _try_decoding(decode_raw, source, location)
    if raw.shape[2] < 3:
        notes = ("grey repeated in three channels", *notes)
    if raw.shape[2] in (2, 4):
        raw, notes = _composite_over_white(raw, notes)
    return DecodedImage(pixels=_to_rgb8(raw), notes=notes)


def read_image_size(source: str | ImageSource, location: object = None) -> tuple[int, int]:
    """Return (h, w) of the image in a file, in pixels, after EXIF orientation.

    Only the header is read.

    Args:
        source: As of `read_image`.
        location: As of `read_image`.

    Raises:
        UnreadableFile: If the file is missing, damaged or not an image.
    """
    return _try_decoding(_upright_size, source, location)


def _upright_size(source: ImageSource) -> tuple[int, int]:
    with _open(source) as image:
        is_transposed = _orientation(image) >= 5
        return image.size if is_transposed else (image.height, image.width)


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
    except Exception as error:  # on damaged files Pillow raises almost any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise _unreadable(location, reason) from error


def _check_is_file(path: Path) -> None:
    if not path.exists():
        raise _unreadable(path, "no such file", "check the path")
    if path.is_dir():
        raise _unreadable(path, "it is a folder", "give the path of an image in it")
    if not path.is_file() or not path.stat().st_size:
        raise _unreadable(path, "the file is empty")


def _unreadable(
    location: object, reason: str, remedy: str = "save the file again, or download it again"
) -> UnreadableFile:
    rule = f"an image is a complete file in one of the formats {', '.join(FORMATS)}"
    return UnreadableFile(f"Cannot read '{location}': {reason}", rule=rule, remedy=remedy)


def _composite_over_white(
    raw: RawPixels, notes: tuple[str, ...]
) -> tuple[RawPixels, tuple[str, ...]]:
    """Remove the alpha channel by compositing over white; an opaque one is dropped without note."""
    white = np.iinfo(raw.dtype).max
    colors, alpha = raw[..., :-1], raw[..., -1:].astype(np.int64)
    if (alpha == white).all():
        return colors, notes
    # Integer arithmetic, rounded half up: alpha * color + (1 - alpha) * white.
    blended = (colors * alpha + white * (white - alpha) + white // 2) // white
    return blended.astype(raw.dtype), (*notes, "transparency composited over white")


def _to_rgb8(raw: RawPixels) -> Pixels:
    """Convert (h, w, 1 or 3) of 8 or 16 bits to (h, w, 3) uint8.

    16 bits become round(value / 257), because 65535 = 257 * 255; a shift by 8 would only truncate.
    """
    if raw.dtype == np.uint16:
        raw = ((raw.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.array(np.broadcast_to(raw, (*raw.shape[:2], 3)), np.uint8)


def write_image(path: str | Path, pixels: Pixels) -> None:
    """Write an image file atomically; folders are created.

    Args:
        path: The suffix chooses the format (see `SUFFIXES`).
        pixels: (h, w, 3) uint8, RGB.

    Raises:
        UnwritableFile: If the suffix, the array or the folder does not allow it. An existing file
            is then left as it was.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise _unwritable(path, f"unsupported suffix '{path.suffix}'")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise _unwritable(path, f"the array is {pixels.dtype} {pixels.shape}")
    format_name, stream = Image.registered_extensions()[path.suffix.lower()], BytesIO()
    try:
        Image.fromarray(pixels).save(stream, format_name, **_SAVE_OPTIONS.get(format_name, {}))
    except (OSError, ValueError) as error:  # sides beyond the limit of the format
        raise _unwritable(path, f"{format_name} cannot store {pixels.shape}: {error}") from error
    write_bytes(path, stream.getvalue(), "choose another file name or folder")


def _unwritable(path: Path, reason: str) -> UnwritableFile:
    rule = f"images are (h, w, 3) uint8, written to files with the suffix {', '.join(SUFFIXES)}"
    remedy = "choose another file name or folder, or correct the array"
    return UnwritableFile(f"Cannot write '{path}': {reason}", rule=rule, remedy=remedy)


def find_images(paths: Iterable[str | Path]) -> tuple[Path, ...]:
    """Return the given files and the images in the given folders, sorted and without duplicates.

    Folders are not searched recursively. A file that is given is taken whatever its suffix.

    Raises:
        NotFound: If a path does not exist, or there is no image at all.
    """
    sources = [Path(path) for path in paths]
    if missing := [path for path in sources if not path.exists()]:
        raise _not_found("No such file or folder:", missing)
    files = {file for path in sources for file in (list_images(path) if path.is_dir() else (path,))}
    if not files:
        raise _not_found("No images in", sources)
    return tuple(sorted(files))


def list_images(folder: Path) -> tuple[Path, ...]:
    """Return the images of a folder, recognized by suffix, sorted; hidden files are skipped."""
    return tuple(
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
    )


def _not_found(problem: str, paths: list[Path]) -> NotFound:
    names = ", ".join(f"'{path}'" for path in paths) or "an empty list of paths"
    rule = f"give images, or folders that contain images ({', '.join(SUFFIXES)})"
    return NotFound(f"{problem} {names}", rule=rule, remedy="check the paths")


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
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=buffer_size)
    source: Any = grain.MapDataset.range(len(items)).map(lambda index: fn(items[index]))
    return iter(source.to_iter_dataset(options))
