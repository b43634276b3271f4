"""Every kind of sample that a file can hold comes out as the numbers that went in."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from esrjax.pictures.samples import decode

RANDOM = np.random.default_rng(0)
DEEP = "16 bits per channel rounded to 8"


def png(samples: NDArray[np.uint16], key: tuple[int, ...] = ()) -> bytes:
    """A PNG of (h, w, C) 16-bit samples, each row a difference to the one above (filter 2)."""
    height, width, channels = samples.shape
    rows = np.frombuffer(samples.astype(">u2").tobytes(), np.uint8).reshape(height, -1)
    filtered = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1])).astype(np.uint8)
    data = b"".join(b"\x02" + row.tobytes() for row in filtered)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    chunks += [(b"tRNS", struct.pack(f">{len(key)}H", *key))] if key else []
    chunks += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def tiff(samples: NDArray[np.uint16], end: str, plane: int = 1) -> bytes:
    """An uncompressed TIFF of (h, w, 3) 16-bit samples; `end` is "<" or ">"."""
    height, width, channels = samples.shape
    data = samples.astype(f"{end}u2").tobytes()
    tags = {256: width, 257: height, 258: 134, 259: 1, 262: 2, 273: 140, 277: channels}
    tags |= {278: height, 279: len(data), 284: plane}
    entries = b"".join(
        struct.pack(f"{end}HHII", tag, 3, 3, value)
        if tag == 258
        else struct.pack(f"{end}HHII", tag, 4, 1, value)
        for tag, value in tags.items()
    )
    header = (b"II" if end == "<" else b"MM") + struct.pack(f"{end}HIH", 42, 8, len(tags))
    return header + entries + bytes(4) + struct.pack(f"{end}3H", 16, 16, 16) + data


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_keeps_all_16_bits(tmp_path: Path, channels: int) -> None:
    samples = RANDOM.integers(0, 65536, (9, 7, channels), np.uint16)
    (tmp_path / "deep.png").write_bytes(png(samples))
    decoded, notes = decode(tmp_path / "deep.png")
    assert decoded.dtype == np.uint16
    assert np.array_equal(decoded, samples)
    assert notes == (DEEP,)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_16_bit_key_colour_becomes_alpha(tmp_path: Path, channels: int) -> None:
    samples = RANDOM.integers(0, 65536, (9, 7, channels), np.uint16)
    key = tuple(samples[4, 5].tolist())
    samples[0, 0] = samples[4, 5] ^ 1  # nearly the key: the same upper byte
    (tmp_path / "key.png").write_bytes(png(samples, key))
    decoded, _ = decode(tmp_path / "key.png")
    assert np.array_equal(decoded[..., :-1], samples)
    assert decoded[4, 5, -1] == 0
    assert decoded[0, 0, -1] == 65535


@pytest.mark.parametrize("end", ["<", ">"])
def test_tiff_keeps_all_16_bits(tmp_path: Path, end: str) -> None:
    samples = RANDOM.integers(0, 65536, (9, 7, 3), np.uint16)
    (tmp_path / "deep.tif").write_bytes(tiff(samples, end))
    decoded, notes = decode(tmp_path / "deep.tif")
    assert np.array_equal(decoded, samples)
    assert notes == (DEEP,)


def test_16_bit_planes_are_refused_since_pillow_reads_them_wrong(tmp_path: Path) -> None:
    samples = RANDOM.integers(0, 65536, (9, 7, 3), np.uint16)
    (tmp_path / "planes.tif").write_bytes(tiff(samples, "<", plane=2))
    with pytest.raises(ValueError, match="planes of 16 bits are not supported"):
        decode(tmp_path / "planes.tif")


def test_floats_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RANDOM.random((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="floating-point samples"):
        decode(tmp_path / "float.tif")


def test_integers_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 65536, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(ValueError, match="do not fit into 16 bits"):
        decode(tmp_path / "wide.tif")


def test_32_bit_integers_are_taken_for_16_bits(tmp_path: Path) -> None:
    levels = RANDOM.integers(0, 65536, (4, 5), np.int32)
    Image.fromarray(levels).save(tmp_path / "grey.tif")
    decoded, notes = decode(tmp_path / "grey.tif")
    assert np.array_equal(decoded[..., 0], levels)
    assert notes == (DEEP,)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_out_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (4, 6, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    image.save(path, exif=exif, lossless=True)
    exif_image = image.copy()
    exif_image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(exif_image))
    decoded, notes = decode(path)
    assert np.array_equal(decoded, upright)
    if suffix != "tif":  # Pillow turns these itself
        assert notes == (("turned as its EXIF orientation says",) if orientation > 1 else ())


def test_the_first_frame_of_several(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    decoded, notes = decode(tmp_path / "pages.tif")
    assert (decoded == (255, 0, 0)).all()
    assert notes == ("first of 3 pictures in the file",)
