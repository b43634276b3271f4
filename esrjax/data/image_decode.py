"""Decoding of image files to raw pixels: 8 or 16 bits, upright, with the alpha channel of the file.

`esrjax.data.image_io` converts them to RGB.
"""

import re
import sys
import threading
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from esrjax.data.image_metadata import ImageMetadata, read_metadata

RawPixels = NDArray[np.uint8 | np.uint16]  # (h, w, C): gray, gray + alpha, RGB or RGB + alpha
ImageSource = Path | bytes  # an image file, or the content of one

# Recognized by content, not by suffix. EPS is left out: Pillow would run Ghostscript on it.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")

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


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """The first image of a file, upright, before its conversion to RGB.

    Attributes:
        samples: (h, w, C) of 8 or 16 bits.
        notes: What was lost or changed.
        metadata: What the file has beside the pixels.
    """

    samples: RawPixels
    notes: tuple[str, ...]
    metadata: ImageMetadata


def decode_raw(source: ImageSource) -> RawImage:
    """Decode the first image of a file, after EXIF orientation.

    Raises:
        ValueError: For floating-point pixels, planar 16-bit TIFFs, and values beyond 16 bits; on
            damaged files whatever Pillow raises.
    """
    with _open(source) as image:
        num_frames = getattr(image, "n_frames", 1)
        if image.format == "TIFF":  # Pillow applies its orientation and closes it when it decodes
            orientation, metadata = _orientation(image), read_metadata(image)
            samples, note = _decode(image, source)
        else:  # PNG may have text and EXIF after the pixels
            samples, note = _decode(image, source)
            orientation, metadata = _orientation(image), read_metadata(image)
            samples = _turn_upright(samples, orientation)
    notes = [note, f"first of {num_frames} images in the file" if num_frames > 1 else ""]
    notes += ["rotated or flipped by its EXIF orientation" if orientation > 1 else ""]
    return RawImage(samples=samples, notes=tuple(filter(None, notes)), metadata=metadata)


def _turn_upright(samples: RawPixels, orientation: int) -> RawPixels:
    samples = np.rot90(samples, _EXIF_ROTATIONS[orientation])
    return samples[:, ::-1] if orientation in _EXIF_FLIPPED else samples


def read_upright_size(source: ImageSource) -> tuple[int, int]:
    """Return (h, w) of the first image of a file after EXIF orientation, from its header alone."""
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
