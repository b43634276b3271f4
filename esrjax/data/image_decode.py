"""Decoding of image files to raw pixels: 8 or 16 bits, upright, with the alpha channel of the file.

`esrjax.data.image_io` converts them to RGB.
"""

import contextlib
import re
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from esrjax.data.image_metadata import (
    ImageMetadata,
    cmyk_to_rgb,
    png_color_note,
    read_metadata,
    readable_variants,
)

RawPixels = NDArray[np.uint8 | np.uint16]  # (h, w, C): gray, gray + alpha, RGB or RGB + alpha
ImageSource = Path | bytes  # an image file, or the content of one

# Recognized by content, not by suffix. EPS is left out: Pillow would run Ghostscript on it.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")

_ROUNDED = " bits per channel rounded to 8"
NOTE_16_BIT = f"16{_ROUNDED}"
_HEADER_BYTES = 2**16  # of a file, in which a colour space is looked for
_CONVERTED_MODES = ("CMYK", "LAB", "YCbCr")  # to which no profile of RGB or gray applies
Output = TypeVar("Output")
_CONVERSION_NOTES = {  # PIL mode -> note
    "P": "palette converted to RGB",
    "PA": "palette converted to RGB",
    "YCbCr": "YCbCr converted to RGB",
    "LAB": "Lab converted to RGB",
}
# Pillow's raw modes of 16 bits per channel: big-endian, little-endian, native.
_RGB16_RAWMODE = re.compile(r"(RGB|RGBX|RGBA);16([BLN])")
# Raw mode of a gray PNG of 2 or 4 bits -> factor to 8 bits. Pillow applies it to the samples, but
# not to the transparent level.
_KEY_FACTORS = {"L;2": 85, "L;4": 17}
_OPPOSITE_ENDIAN = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
# EXIF orientation -> number of rotations by 90 degrees counterclockwise; some are then flipped.
_EXIF_ROTATIONS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}
_EXIF_FLIPPED = (2, 4, 5, 7)  # left-right
_open_lock = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """The first image of a file, upright, before its conversion to 8-bit RGB.

    Attributes:
        samples: (h, w, C) of 8 or 16 bits.
        notes: What was lost or changed.
        metadata: What the file has beside the pixels.
        icc_profile: The ICC profile of the samples, None if there is none.
    """

    samples: RawPixels
    notes: tuple[str, ...]
    metadata: ImageMetadata
    icc_profile: bytes | None = None


def decode_raw(source: ImageSource) -> RawImage:
    """Decode the first image of a file, after EXIF orientation.

    Raises:
        ValueError: For what is not decoded rightly: floating point, signed integers, planar 16-bit
            TIFFs, values beyond 16 bits; on damaged files whatever Pillow raises.
    """
    raw, note = _try_variants(_decode_file, source)
    if note is None:
        return raw
    lost = replace(raw.metadata, notes=(*raw.metadata.notes, "not kept: text too large to read"))
    return replace(raw, notes=(*raw.notes, *filter(None, [note])), metadata=lost)


def read_upright_size(source: ImageSource) -> tuple[int, int]:
    """Return (h, w) of the first image of a file after EXIF orientation, from its header alone."""
    return _try_variants(_upright_size, source)[0]


def _try_variants(
    decode: Callable[[ImageSource], Output], source: ImageSource
) -> tuple[Output, str | None]:
    """Return `decode(source)`, for a PNG that fails without its texts; None for no such note."""
    try:
        return decode(source), None
    except Exception:  # on damaged files Pillow raises almost any exception
        content = source if isinstance(source, bytes) else source.read_bytes()
        for variant, note in readable_variants(content):
            with contextlib.suppress(Exception):
                return decode(variant), note
        raise


def _decode_file(source: ImageSource) -> RawImage:
    with _open(source) as image:
        num_frames, is_png = getattr(image, "n_frames", 1), image.format == "PNG"
        if image.format == "TIFF":  # Pillow applies its orientation and closes it when it decodes
            orientation, metadata = _orientation(image), read_metadata(image)
            samples, notes = _decode(image, source)
        else:  # PNG may have text and EXIF after the pixels
            samples, notes = _decode(image, source)
            orientation, metadata = _orientation(image), read_metadata(image)
            samples = _turn_upright(samples, orientation)
        profile = None if image.mode in _CONVERTED_MODES else image.info.get("icc_profile")
        color_note = png_color_note(image.info, _read_header(source)) if is_png else ""
    notes += [f"first of {num_frames} images in the file"] * (num_frames > 1)
    notes += ["rotated or flipped by its EXIF orientation"] * (orientation > 1)
    return RawImage(
        samples=samples,
        notes=tuple(filter(None, [*notes, color_note])),
        metadata=metadata,
        icc_profile=profile,
    )


def _read_header(source: ImageSource) -> bytes:
    if isinstance(source, bytes):
        return source[:_HEADER_BYTES]
    with source.open("rb") as file:
        return file.read(_HEADER_BYTES)


def _turn_upright(samples: RawPixels, orientation: int) -> RawPixels:
    samples = np.rot90(samples, _EXIF_ROTATIONS[orientation])
    return samples[:, ::-1] if orientation in _EXIF_FLIPPED else samples


def _upright_size(source: ImageSource) -> tuple[int, int]:
    with _open(source) as image:
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow exchange the sides here, others later
            tags: Any = getattr(image, "tag_v2", {})
            width, height = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
        return (width, height) if _orientation(image) >= 5 else (height, width)


def _open(source: ImageSource) -> ImageFile.ImageFile:
    """Open with Pillow, which reads the header; images up to 179 million pixels are accepted.

    Pillow warns from half of that on (decompression bombs) and raises beyond it.
    """
    with _open_lock, warnings.catch_warnings():  # warning filters are global: one thread at a time
        warnings.simplefilter("ignore")
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _decode(image: ImageFile.ImageFile, source: ImageSource) -> tuple[RawPixels, list[str]]:
    """Return the samples, and notes, of which some may be empty."""
    rawmode = _rawmode(image)
    _check_supported(image)
    dropped = "channels beyond RGB and alpha dropped" if "X" in rawmode.partition(";")[0] else ""
    if image.mode.startswith("I"):
        samples, notes = _decode_gray16(image)
        return _add_key_alpha(samples, image), [*notes, dropped]
    if rawmode == "LA;16B":
        return _decode_gray_alpha16(image), [NOTE_16_BIT]
    if _RGB16_RAWMODE.fullmatch(rawmode):
        return _add_key_alpha(_decode_rgb16(image, source), image), [NOTE_16_BIT, dropped]
    depth_note = _lost_depth_note(image, rawmode)
    samples, note = _decode_8bit(image, rawmode)
    return samples, [depth_note, note, dropped]


def _check_supported(image: ImageFile.ImageFile) -> None:
    """Raise `ValueError` for samples that Pillow would return with wrong values."""
    tags: Any = getattr(image, "tag_v2", {})
    # Tags of TIFF: 258 BitsPerSample, 284 PlanarConfiguration, 339 SampleFormat.
    bits, is_signed = max(tags.get(258, (8,))), 2 in tags.get(339, ())
    if image.mode == "F" or (tags.get(284) == 2 and bits == 16):
        raise ValueError("floating-point pixels and planar 16-bit TIFFs are not supported")
    if is_signed and bits <= 16:
        raise ValueError(f"signed {bits}-bit samples are not supported, since white is not defined")


def _lost_depth_note(image: ImageFile.ImageFile, rawmode: str) -> str:
    """Return a note if Pillow itself reduces the samples to 8 bits."""
    if ";16" in rawmode:
        return "16 bits per channel truncated to 8"
    tile: Any = image.tile[0] if image.tile else None
    if tile and tile.codec_name.startswith("ppm") and tile.args[-1] > 255:
        return NOTE_16_BIT
    return ""


def _decode_8bit(image: ImageFile.ImageFile, rawmode: str) -> tuple[NDArray[np.uint8], str]:
    image.load()
    note = _CONVERSION_NOTES.get(image.mode, "")
    if image.mode == "CMYK":
        rgb, note = cmyk_to_rgb(image, image.info.get("icc_profile"))
        return np.array(rgb), note
    if (factor := _KEY_FACTORS.get(rawmode)) and "transparency" in image.info:
        image.info["transparency"] *= factor
    has_alpha = "transparency" in image.info or image.mode in ("La", "LA", "PA", "RGBA")
    mode = ("L" if image.mode in ("1", "L", "La", "LA") else "RGB") + ("A" if has_alpha else "")
    return np.array(image.convert(mode)).reshape(image.height, image.width, len(mode)), note


def _decode_gray16(image: ImageFile.ImageFile) -> tuple[NDArray[np.uint16], list[str]]:
    """Return (h, w, 1); Pillow keeps all bits of gray images, sometimes as 32-bit integers."""
    tags: Any = getattr(image, "tag_v2", {})
    bits, is_white_zero = max(tags.get(258, (16,))), tags.get(262) == 0
    levels = np.array(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its gray levels do not fit into 16 bits")
    notes = [NOTE_16_BIT]
    if bits < 16:  # Pillow leaves 12 bits as they are
        white = 2**bits - 1
        levels, notes = (
            (levels.astype(np.uint32) * 65535 + white // 2) // white,
            [f"{bits}" + _ROUNDED],
        )
    elif bits > 16:
        notes.append(f"{bits}-bit integers taken as levels of 0 to 65535")
    if is_white_zero:  # Pillow applies it to 8 bits and less
        levels = 65535 - levels
    return levels.astype(np.uint16)[..., None], notes


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
