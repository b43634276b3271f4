"""Encoding of image files from bands of rows: PNG, TIFF and BMP in constant memory.

A band is (rows, w, C) uint8, RGB or RGB + alpha; bands follow each other from top to bottom. What
an encoder has written of them is in the file. JPEG and WebP are encoded by Pillow, which holds the
whole image, 4 bytes a pixel, and the encoded file.

PNG: the filter is Paeth in every row, and deflate looks for runs only (`Z_RLE`). Of upscaled photos
this makes files of the same size as minimum-sum filters and a search at level 6, in a ninth of the
time (docs/benchmarks.md, "Memory of upscale").
"""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from esrjax.data.image_metadata import PNG_SIGNATURE, ImageMetadata
from esrjax.errors import UnwritableFile

Band = NDArray[np.uint8]  # (rows, w, 3 or 4): RGB, or RGB + alpha
Shape = tuple[int, int, int]  # (h, w, 3 or 4) of the whole image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")  # that are written
_MAX_SIDE = {"JPEG": 65500, "WEBP": 16383}  # pixels, of the libraries that write them
_MAX_BYTES = 2**32 - 2**16  # of BMP and TIFF, which count in 32 bits, without their header
# Lossless where the format allows it, else the best quality. JPEG keeps full chroma resolution
# (subsampling=0, that is 4:4:4).
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
_MODES = {3: "RGB", 4: "RGBA"}
_PNG_COLOR_TYPES = {3: 2, 4: 6}
_PAETH = 4
_BLOCK_BYTES = 1 << 17  # of rows that are filtered at once; they stay in the CPU's cache
_STRIP_BYTES = 1 << 20  # of a TIFF, about
_BMP_HEADER_BYTES = 54
_DEFAULT_DPI = (96, 96)  # of a BMP, which always has a resolution


class ImageEncoder(Protocol):
    """Writes an image to a file, band by band."""

    def write(self, band: Band) -> None:
        """Write the next rows."""
        ...

    def close(self) -> None:
        """Write what follows the last row; the file is complete then, and stays open."""
        ...


def format_of(path: Path) -> str:
    """Return Pillow's name of the format that the suffix of a file, one of `SUFFIXES`, chooses."""
    return Image.registered_extensions()[path.suffix.lower()]


def open_encoder(
    format_name: str, file: BinaryIO, shape: Shape, metadata: ImageMetadata
) -> ImageEncoder:
    """Return an encoder that has written the header of an image file.

    Args:
        format_name: As of `format_of`.
        file: An empty file.
        shape: Of the image.
        metadata: EXIF block and resolution, as far as the format can store them.
    """
    if format_name == "PNG":
        return _PngEncoder(file, shape, metadata)
    if format_name == "TIFF":
        return _TiffEncoder(file, shape, metadata)
    if format_name == "BMP":
        return _BmpEncoder(file, shape, metadata)
    return _PillowEncoder(format_name, file, shape, metadata)


def check_storable(path: Path, size: tuple[int, int]) -> None:
    """Raise `UnwritableFile` if the format of a file cannot store an image of this size.

    Args:
        path: The suffix chooses the format.
        size: (h, w), pixels.
    """
    format_name = format_of(path)
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


# --- PNG ---


class _PngEncoder:
    """Source: W3C, Portable Network Graphics specification, sections 5, 9 and 11."""

    def __init__(self, file: BinaryIO, shape: Shape, metadata: ImageMetadata):
        height, width, self._channels = shape
        self._file = file
        self._compressor = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
        self._previous = np.zeros((width + 1) * self._channels, np.uint8)  # the row above
        color_type = _PNG_COLOR_TYPES[self._channels]
        file.write(PNG_SIGNATURE)
        self._chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0))
        if metadata.dpi:
            x, y = (int(dpi / 0.0254 + 0.5) for dpi in metadata.dpi)  # pixels per meter
            self._chunk(b"pHYs", struct.pack(">IIB", x, y, 1))
        if metadata.exif:
            self._chunk(b"eXIf", metadata.exif.removeprefix(b"Exif\0\0"))

    def write(self, band: Band) -> None:
        rows = band.reshape(len(band), band.shape[1] * self._channels)
        step = max(1, _BLOCK_BYTES // rows.shape[1])
        for start in range(0, len(rows), step):
            self._data(self._compressor.compress(self._filter(rows[start : start + step]).data))

    def close(self) -> None:
        self._data(self._compressor.flush())
        self._chunk(b"IEND", b"")

    def _filter(self, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the filtered rows, each after the number of its filter; (rows, 1 + bytes)."""
        padded = np.zeros((len(rows) + 1, len(self._previous)), np.uint8)
        padded[0], padded[1:, self._channels :] = self._previous, rows
        self._previous = padded[-1]
        filtered = np.empty((len(rows), 1 + rows.shape[1]), np.uint8)
        filtered[:, 0], filtered[:, 1:] = _PAETH, _paeth(padded, self._channels)
        return filtered

    def _data(self, data: bytes) -> None:
        if data:
            self._chunk(b"IDAT", data)

    def _chunk(self, name: bytes, data: bytes) -> None:
        checksum = zlib.crc32(data, zlib.crc32(name))
        for part in (struct.pack(">I", len(data)), name, data, struct.pack(">I", checksum)):
            self._file.write(part)


def _paeth(rows: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Return the differences of all rows but the first to their Paeth predictions, modulo 256.

    The predictor is a, b or c (left, above, above left), whichever is closest to a + b - c, in this
    order. In 8 bits: c is closest only strictly between a and b, where the distance to it is the
    difference of the other two.

    Args:
        rows: (n + 1, channels + bytes), with a pixel of zeros on the left.
        channels: Bytes of a pixel.
    """
    a, b = rows[1:, :-channels], rows[:-1, channels:]
    c = rows[:-1, :-channels]
    to_a = np.maximum(b, c) - np.minimum(b, c)
    to_b = np.maximum(a, c) - np.minimum(a, c)
    nearer = np.minimum(to_a, to_b)
    is_between = (np.minimum(a, b) < c) & (c < np.maximum(a, b))
    takes_c = is_between & (np.maximum(to_a, to_b) - nearer < nearer)
    return rows[1:, channels:] - _select(takes_c, c, _select(to_a <= to_b, a, b))


def _select(condition: Any, a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `np.where(condition, a, b)`, by bits, which is several times as fast."""
    return b ^ ((a ^ b) & -condition.view(np.uint8))


# --- TIFF, BMP, and formats of Pillow ---


class _TiffEncoder:
    """Uncompressed strips; classic TIFF, up to 4 GiB."""

    def __init__(self, file: BinaryIO, shape: Shape, metadata: ImageMetadata):
        self._file, tag = file, ExifTags.Base
        height, width, channels = shape
        row_bytes = width * channels
        strip_rows = min(height, max(1, _STRIP_BYTES // row_bytes))
        starts = range(0, height, strip_rows)
        directory: Any = ImageFileDirectory_v2(prefix=b"II")
        directory.update(_exif_tags(metadata.exif))
        if metadata.dpi:
            directory[tag.XResolution], directory[tag.YResolution] = metadata.dpi
            directory[tag.ResolutionUnit] = 2  # inch
        directory[tag.ImageWidth], directory[tag.ImageLength] = width, height
        directory[tag.BitsPerSample], directory[tag.SamplesPerPixel] = (8,) * channels, channels
        directory[tag.Compression], directory[tag.PhotometricInterpretation] = 1, 2  # none, RGB
        directory[tag.PlanarConfiguration], directory[tag.RowsPerStrip] = 1, strip_rows
        if channels == 4:
            directory[tag.ExtraSamples] = 2  # alpha, not multiplied
        for strips in (tag.StripByteCounts, tag.StripOffsets):
            directory.tagtype[strips] = 4  # 32 bits
        directory[tag.StripByteCounts] = tuple(
            row_bytes * min(strip_rows, height - start) for start in starts
        )
        directory[tag.StripOffsets] = tuple(row_bytes * start for start in starts)
        directory.save(file)  # adds the size of the header to the offsets

    def write(self, band: Band) -> None:
        self._file.write(np.ascontiguousarray(band).data)

    def close(self) -> None:
        pass


def _exif_tags(exif_bytes: bytes) -> dict[int, Any]:
    """Return the fields of an EXIF block, with directories in it as dictionaries."""
    exif = Image.Exif()
    exif.load(exif_bytes)
    directories = set(ExifTags.IFD)
    return {key: exif.get_ifd(key) if key in directories else exif[key] for key in exif}


class _BmpEncoder:
    """24 bits a pixel, BGR; rows from the bottom to the top, each padded to 4 bytes."""

    def __init__(self, file: BinaryIO, shape: Shape, metadata: ImageMetadata):
        self._file, (height, width, _) = file, shape
        self._row_bytes, self._rows_left = (3 * width + 3) // 4 * 4, height
        num_bytes = self._row_bytes * height
        x, y = (int(dpi * 39.3701 + 0.5) for dpi in metadata.dpi or _DEFAULT_DPI)
        file.write(
            struct.pack("<2sIII", b"BM", _BMP_HEADER_BYTES + num_bytes, 0, _BMP_HEADER_BYTES)
        )
        fields = (40, width, height, 1, 24, 0, num_bytes, x, y, 0, 0)
        file.write(struct.pack("<IIIHHIIIIII", *fields))

    def write(self, band: Band) -> None:
        self._rows_left -= len(band)
        rows = np.zeros((len(band), self._row_bytes), np.uint8)
        num_bytes = 3 * band.shape[1]
        rows[:, :num_bytes] = band[::-1, :, ::-1].reshape(len(band), num_bytes)
        self._file.seek(_BMP_HEADER_BYTES + self._rows_left * self._row_bytes)
        self._file.write(rows.data)

    def close(self) -> None:
        pass


class _PillowEncoder:
    """Pastes the bands into one image, which Pillow encodes at the end."""

    def __init__(self, format_name: str, file: BinaryIO, shape: Shape, metadata: ImageMetadata):
        self._file, self._format_name, self._row = file, format_name, 0
        self._image = Image.new(_MODES[shape[2]], (shape[1], shape[0]))
        self._options = {**_SAVE_OPTIONS.get(format_name, {})}
        self._options |= {"exif": metadata.exif} if metadata.exif else {}
        self._options |= {"dpi": metadata.dpi} if metadata.dpi else {}

    def write(self, band: Band) -> None:
        self._image.paste(Image.fromarray(band), (0, self._row))
        self._row += len(band)

    def close(self) -> None:
        # Not to the file itself: Pillow would not notice a disk that is full at the last write.
        stream = BytesIO()
        try:
            self._image.save(stream, self._format_name, **self._options)
        except ValueError as error:
            raise OSError(f"{self._format_name} cannot store it: {error}") from error
        self._file.write(stream.getbuffer())
