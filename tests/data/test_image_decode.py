"""Decoding of image files: 16-bit pixels, key colors, orientation, unsupported modes."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from esrjax.data.image_decode import decode_raw
from esrjax.data.image_io import read_image_size

RANDOM = np.random.default_rng(0)
ROUNDED = "16 bits per channel rounded to 8"


def png(pixels: NDArray[np.uint16], key: tuple[int, ...] = ()) -> bytes:
    """Encode (h, w, C) 16-bit pixels as PNG, each row as the difference to the one above."""
    height, width, channels = pixels.shape
    rows = np.frombuffer(pixels.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    filtered = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1])).astype(np.uint8)
    data = b"".join(b"\x02" + row.tobytes() for row in filtered)  # filter type 2, "up"
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))]
    chunks += [(b"tRNS", struct.pack(f">{len(key)}H", *key))] if key else []
    chunks += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
        for tag, data in chunks
    )


def tiff(pixels: NDArray[np.uint16], endian: str, planar_config: int = 1) -> bytes:
    """Encode (h, w, 3) 16-bit pixels as uncompressed TIFF; `endian` is "<" or ">"."""
    height, width, channels = pixels.shape
    data = pixels.astype(f"{endian}u2").tobytes()
    tags = {256: width, 257: height, 258: 134, 259: 1, 262: 2, 273: 140, 277: channels}
    tags |= {278: height, 279: len(data), 284: planar_config}
    entries = b"".join(
        struct.pack(f"{endian}HHII", tag, 3, 3, value)
        if tag == 258
        else struct.pack(f"{endian}HHII", tag, 4, 1, value)
        for tag, value in tags.items()
    )
    header = (b"II" if endian == "<" else b"MM") + struct.pack(f"{endian}HIH", 42, 8, len(tags))
    return header + entries + bytes(4) + struct.pack(f"{endian}3H", 16, 16, 16) + data


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_keeps_all_16_bits(tmp_path: Path, channels: int) -> None:
    pixels = RANDOM.integers(0, 65536, (9, 7, channels), np.uint16)
    (tmp_path / "deep.png").write_bytes(png(pixels))
    raw = decode_raw(tmp_path / "deep.png")
    decoded, notes = raw.samples, raw.notes
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, pixels)
    assert notes == (ROUNDED,)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_key_color_becomes_alpha(tmp_path: Path, channels: int) -> None:
    pixels = RANDOM.integers(0, 65536, (9, 7, channels), np.uint16)
    key = tuple(pixels[4, 5].tolist())
    pixels[0, 0] = pixels[4, 5] ^ 1  # almost the key color: the same upper byte
    (tmp_path / "key.png").write_bytes(png(pixels, key))
    decoded = decode_raw(tmp_path / "key.png").samples
    assert np.array_equal(decoded[..., :-1], pixels)
    assert decoded[4, 5, -1] == 0
    assert decoded[0, 0, -1] == 65535


@pytest.mark.parametrize("endian", ["<", ">"])
def test_tiff_keeps_all_16_bits(tmp_path: Path, endian: str) -> None:
    pixels = RANDOM.integers(0, 65536, (9, 7, 3), np.uint16)
    (tmp_path / "deep.tif").write_bytes(tiff(pixels, endian))
    raw = decode_raw(tmp_path / "deep.tif")
    decoded, notes = raw.samples, raw.notes
    assert np.array_equal(decoded, pixels)
    assert notes == (ROUNDED,)


def test_planar_16_bit_tiff_is_rejected_because_pillow_decodes_it_wrongly(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 65536, (9, 7, 3), np.uint16)
    (tmp_path / "planes.tif").write_bytes(tiff(pixels, "<", planar_config=2))
    with pytest.raises(ValueError, match="planar 16-bit"):
        decode_raw(tmp_path / "planes.tif")


def test_float_images_are_rejected(tmp_path: Path) -> None:
    Image.fromarray(RANDOM.random((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="floating-point"):
        decode_raw(tmp_path / "float.tif")


def test_integers_beyond_16_bits_are_rejected(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 65536, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match="do not fit into 16 bits"):
        decode_raw(tmp_path / "wide.tif")


def test_32_bit_integers_are_decoded_as_16_bits(tmp_path: Path) -> None:
    levels = RANDOM.integers(0, 65536, (4, 5), np.int32)
    Image.fromarray(levels).save(tmp_path / "gray.tif")
    raw = decode_raw(tmp_path / "gray.tif")
    decoded, notes = raw.samples, raw.notes
    assert np.array_equal(decoded[..., 0], levels)
    assert notes == (ROUNDED,)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (4, 6, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"rotated.{suffix}"
    image.save(path, exif=exif, lossless=True)
    image.save(tmp_path / f"upright.{suffix}", lossless=True)
    exif_image = Image.open(tmp_path / f"upright.{suffix}").convert("RGB")  # lossy formats
    exif_image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(exif_image))
    raw = decode_raw(path)
    decoded, notes = raw.samples, raw.notes
    assert np.array_equal(decoded, upright)
    note = "rotated or flipped by its EXIF orientation"
    assert notes == ((note,) if orientation > 1 else ())
    assert read_image_size(path) == decoded.shape[:2]


def test_first_frame_of_several_is_decoded(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    raw = decode_raw(tmp_path / "pages.tif")
    decoded, notes = raw.samples, raw.notes
    assert (decoded == (255, 0, 0)).all()
    assert notes == ("first of 3 images in the file",)
