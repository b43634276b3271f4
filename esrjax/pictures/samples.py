"""What Pillow's modes mean: any picture file as upright samples of 8 or 16 bits."""

import re
import sys
import threading
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

Samples = NDArray[np.uint8 | np.uint16]  # (h, w, C): grey, grey alpha, RGB or RGB alpha
Source = Path | bytes  # a file, or what is in one

# Told by content, not by suffix. EPS is not among them: Pillow would run Ghostscript on it.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")

DEEP = "16 bits per channel rounded to 8"
_SAID = {
    "P": "palette looked up",
    "PA": "palette looked up",
    "CMYK": "CMYK turned into RGB without its colour profile",
    "YCbCr": "YCbCr turned into RGB",
    "LAB": "Lab turned into RGB",
}
_SIXTEEN = re.compile(r"(RGB|RGBX|RGBA);16([BLN])")  # Pillow's raw modes: big, little, native end
_OTHER_END = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {  # its value -> (quarter turns to the left, mirrored afterwards)
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}
_opening = threading.Lock()


def size(source: Source) -> tuple[int, int]:
    """(h, w) of a file's picture, upright, from its header alone."""
    with _open(source) as image:
        (width, height), turned = image.size, _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def decode(source: Source) -> tuple[Samples, tuple[str, ...]]:
    """The first picture of a file, upright, and notes of what was lost or changed."""
    with _open(source) as image:
        frames = getattr(image, "n_frames", 1)
        samples, note = _decode(image, source)
        turns, mirrored = _UPRIGHT.get(_orientation(image), (0, False))
    samples = np.rot90(samples, turns)
    notes = [note, f"first of {frames} pictures in the file" if frames > 1 else ""]
    notes += ["turned as its EXIF orientation says" if turns or mirrored else ""]
    return samples[:, ::-1] if mirrored else samples, tuple(filter(None, notes))


def _open(source: Source) -> ImageFile.ImageFile:
    """Pillow's image, header read; size is no fault up to Pillow's limit, 179 million pixels."""
    with _opening, warnings.catch_warnings():  # warnings are global: one thread at a time
        warnings.simplefilter("ignore")
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


def _decode(image: ImageFile.ImageFile, source: Source) -> tuple[Samples, str]:
    rawmode = _rawmode(image)
    if image.mode == "F" or _is_planar(image):
        raise ValueError("floating-point samples and planes of 16 bits are not supported")
    if image.mode.startswith("I"):
        return _keyed(_decode_grey(image), image), DEEP
    if rawmode == "LA;16B":
        return _decode_grey_alpha(image), DEEP
    if _SIXTEEN.fullmatch(rawmode):
        return _keyed(_decode_colours(image, source), image), DEEP
    note = "16 bits per channel cut to the upper 8" if ";16" in rawmode else ""
    return _decode_bytes(image), note or _SAID.get(image.mode, "")


def _decode_bytes(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    image.load()
    clear = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA")
    mode = ("L" if image.mode in ("1", "L", "LA") else "RGB") + ("A" if clear else "")
    return np.array(image.convert(mode)).reshape(image.height, image.width, len(mode))


def _decode_grey(image: ImageFile.ImageFile) -> NDArray[np.uint16]:
    """(h, w, 1); Pillow hands on 16-bit grey whole, at times in 32-bit integers."""
    levels = np.array(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ValueError("its grey levels do not fit into 16 bits")
    return levels.astype(np.uint16)[..., None]


def _decode_grey_alpha(image: ImageFile.ImageFile) -> NDArray[np.uint16]:
    """(h, w, 2); read as four bytes a pixel, because Pillow would keep only the upper bytes."""
    _set_rawmode(image, "RGBA")
    quads = np.array(image)
    return _join(quads[..., 0::2], quads[..., 1::2])


def _decode_colours(image: ImageFile.ImageFile, source: Source) -> NDArray[np.uint16]:
    """(h, w, 3 or 4); decoded twice, because Pillow keeps only the byte it takes for the upper."""
    rawmode = _rawmode(image)
    with _open(source) as twin:
        _set_rawmode(twin, rawmode[:-1] + _OTHER_END[rawmode[-1]])
        lower = np.array(twin)
    return _join(np.array(image), lower)


def _join(upper: NDArray[np.uint8], lower: NDArray[np.uint8]) -> NDArray[np.uint16]:
    return (upper.astype(np.uint16) * 256 + lower).astype(np.uint16)


def _keyed(samples: NDArray[np.uint16], image: ImageFile.ImageFile) -> NDArray[np.uint16]:
    """With alpha 0 where a PNG's samples are the one value that it declares transparent."""
    if "transparency" not in image.info:
        return samples
    seen = (samples != np.array(image.info["transparency"])).any(axis=-1, keepdims=True)
    return np.concatenate([samples, seen * np.uint16(65535)], axis=-1)


def _rawmode(image: ImageFile.ImageFile) -> str:
    """Pillow's name for how the samples lie in the file."""
    args = image.tile[0].args if image.tile else None
    return str(args[0]) if isinstance(args, tuple) and args else str(args)


def _set_rawmode(image: ImageFile.ImageFile, rawmode: str) -> None:
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]


def _is_planar(image: ImageFile.ImageFile) -> bool:
    """Whether it is a TIFF of separate 16-bit planes, which Pillow gets wrong without a word."""
    tags: Any = getattr(image, "tag_v2", {})
    return tags.get(284) == 2 and 16 in tags.get(258, ())  # PlanarConfiguration, BitsPerSample


def _orientation(image: ImageFile.ImageFile) -> int:
    """1 to 8; a damaged EXIF block is no reason to refuse the pixels."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1
