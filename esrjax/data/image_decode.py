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
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from esrjax.data.image_metadata import (
    PNG_SIGNATURE,
    ImageMetadata,
    cmyk_to_rgb,
    png_color_note,
    read_metadata,
    readable_variants,
)
from esrjax.io import open_regular, read_bytes

RawPixels = NDArray[np.uint8 | np.uint16]  # (h, w, C): gray, gray + alpha, RGB or RGB + alpha
ImageSource = Path | bytes  # an image file, or the content of one

# Recognized by content, not by suffix. EPS is left out: Pillow would run Ghostscript on it.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")

_ROUNDED = " bits per channel rounded to 8"
NOTE_16_BIT = f"16{_ROUNDED}"
_MAX_BYTES = 2**30  # of a file that is read whole, to look at what Pillow does not tell
_HEADER_BYTES = 2**16  # of a file, in which colour space and depth are looked for
_SIZ = b"\xff\x4f\xff\x51"  # start of a JPEG 2000 codestream
_SIZ_NUM_COMPONENTS = 40  # bytes after that; the components follow, of 3 bytes, the first its depth
_TIFF_MAGIC = (b"II*\0", b"MM\0*")
_TIFF_SAMPLES = "BitsPerSample PhotometricInterpretation PlanarConfiguration SampleFormat".split()
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


class UnsupportedSamples(ValueError):
    """Raised for samples that Pillow has no mode for, or returns with wrong values."""


def decode_raw(source: ImageSource) -> RawImage:
    """Decode the first image of a file, after EXIF orientation.

    Raises:
        UnsupportedSamples: For what is not decoded rightly: floating point, signed integers, planar
            16-bit TIFFs, JPEG 2000 in colour beyond 8 bits, values beyond 16 bits.
        Exception: On damaged files whatever Pillow raises.
    """
    raw, note = _try_variants(_decode_file, source)
    if note is None:
        return raw
    lost = replace(raw.metadata, notes=(*raw.metadata.notes, "not kept: text too large to read"))
    return replace(raw, notes=(*raw.notes, *filter(None, [note])), metadata=lost)


def read_upright_size(source: ImageSource, *, is_limited: bool = True) -> tuple[int, int]:
    """Return (h, w) of the first image of a file after EXIF orientation, from its header alone.

    Args:
        source: The file.
        is_limited: Whether an image of more pixels than are decoded is an error.
    """
    return _try_variants(partial(_upright_size, is_limited=is_limited), source)[0]


def _try_variants(
    decode: Callable[[ImageSource], Output], source: ImageSource
) -> tuple[Output, str | None]:
    """Return `decode(source)`, for a PNG that fails without its texts; None for no such note."""
    try:
        return decode(source), None
    except Exception:  # on damaged files Pillow raises almost any exception
        if not _read_header(source).startswith(PNG_SIGNATURE):
            raise
        content = _read_all(source)
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
    with open_regular(source) as file:
        return file.read(_HEADER_BYTES)


def _read_all(source: ImageSource) -> bytes:
    return source if isinstance(source, bytes) else read_bytes(source, _MAX_BYTES)


def _turn_upright(samples: RawPixels, orientation: int) -> RawPixels:
    samples = np.rot90(samples, _EXIF_ROTATIONS[orientation])
    return samples[:, ::-1] if orientation in _EXIF_FLIPPED else samples


def _upright_size(source: ImageSource, is_limited: bool) -> tuple[int, int]:
    with _open(source, is_limited) as image:
        width, height = image.size
        if image.format == "TIFF":  # some versions of Pillow exchange the sides here, others later
            tags: Any = getattr(image, "tag_v2", {})
            width, height = tags[ExifTags.Base.ImageWidth], tags[ExifTags.Base.ImageLength]
        return (width, height) if _orientation(image) >= 5 else (height, width)


def _open(source: ImageSource, is_limited: bool = True) -> ImageFile.ImageFile:
    """Open with Pillow, which reads the header; images up to 179 million pixels are accepted.

    Pillow warns from half of that on (decompression bombs) and raises beyond it.
    """
    # Warning filters and the limit are global: one thread at a time.
    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit = Image.MAX_IMAGE_PIXELS
        try:
            Image.MAX_IMAGE_PIXELS = limit if is_limited else None
            stream = BytesIO(source) if isinstance(source, bytes) else source
            return Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError:
            if tags := _tiff_samples(source):
                raise UnsupportedSamples(f"its samples are of an unknown kind: {tags}") from None
            raise
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _tiff_samples(source: ImageSource) -> str:
    """Return the tags of a TIFF that describe its samples; empty for another file."""
    if _read_header(source)[:4] not in _TIFF_MAGIC:
        return ""
    content = _read_all(source)
    tags: Any = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
    stream = BytesIO(content)
    stream.seek(tags.next)
    tags.load(stream)
    values = {name: tags.get(ExifTags.Base[name]) for name in _TIFF_SAMPLES}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _decode(image: ImageFile.ImageFile, source: ImageSource) -> tuple[RawPixels, list[str]]:
    """Return the samples, and notes, of which some may be empty."""
    rawmode = _rawmode(image)
    _check_supported(image, source)
    dropped = "channels beyond RGB and alpha dropped" if "X" in rawmode.partition(";")[0] else ""
    if image.mode.startswith("I"):
        samples, notes = _decode_gray16(image)
        return _add_key_alpha(samples, image), [*notes, dropped]
    if rawmode == "LA;16B":
        return _decode_gray_alpha16(image), [NOTE_16_BIT]
    if _RGB16_RAWMODE.fullmatch(rawmode):
        return _add_key_alpha(_decode_rgb16(image, source), image), [NOTE_16_BIT, dropped]
    depth_note = _lost_depth_note(image, rawmode, source)
    samples, note = _decode_8bit(image, rawmode)
    return samples, [depth_note, note, dropped]


def _check_supported(image: ImageFile.ImageFile, source: ImageSource) -> None:
    """Raise `UnsupportedSamples` for samples that Pillow would return with wrong values."""
    tags: Any = getattr(image, "tag_v2", {})
    # Tags of TIFF: 258 BitsPerSample, 284 PlanarConfiguration, 339 SampleFormat.
    bits, is_signed = max(tags.get(258, (8,))), 2 in tags.get(339, ())
    if image.mode == "F":
        raise UnsupportedSamples("its samples are floating-point numbers")
    if tags.get(284) == 2 and bits == 16:
        raise UnsupportedSamples("its 16-bit samples are planar (PlanarConfiguration 2)")
    if is_signed and bits <= 16:
        raise UnsupportedSamples(f"its {bits}-bit samples are signed, and white is not defined")
    # Pillow rounds these to 8 bits without a limit: white becomes 256, which is black.
    if image.format == "JPEG2000" and image.mode != "I;16" and (bits := _jpeg2000_bits(source)) > 8:
        raise UnsupportedSamples(
            f"its samples are JPEG 2000 of {bits} bits in colour or with alpha"
        )


def _jpeg2000_bits(source: ImageSource) -> int:
    """Return the largest depth of a component of a JPEG 2000 file, bits."""
    content = _read_all(source)
    start = content.index(_SIZ) + _SIZ_NUM_COMPONENTS
    stop = start + 2 + 3 * int.from_bytes(content[start : start + 2], "big")
    return max((depth & 127) + 1 for depth in content[start + 2 : stop : 3])


def _avif_bits(header: bytes) -> int:
    """Return the largest depth of an AVIF file, by the configurations of its AV1 streams, bits."""
    flags = [match[1][0] for match in re.finditer(rb"av1C\x81.(.)", header, re.DOTALL)]
    return max((8 if not flag & 0x40 else 12 if flag & 0x20 else 10 for flag in flags), default=8)


def _lost_depth_note(image: ImageFile.ImageFile, rawmode: str, source: ImageSource) -> str:
    """Return a note if Pillow itself reduces the samples to 8 bits."""
    if image.format == "AVIF" and (bits := _avif_bits(_read_header(source))) > 8:
        return f"{bits}{_ROUNDED}"
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
        raise UnsupportedSamples("its gray levels do not fit into 16 bits")
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
