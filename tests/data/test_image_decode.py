"""Decoding of image files: 16-bit pixels, key colors, orientation, unsupported modes."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import image_encoders
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from esrjax.data.image_decode import decode_raw
from esrjax.data.image_io import read_image, read_image_size
from esrjax.data.image_metadata import NOTE_DAMAGED_PROFILE
from esrjax.errors import UnreadableFile

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
    with pytest.raises(ValueError, match="16-bit samples are planar"):
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
    assert notes == (ROUNDED, "32-bit integers taken as levels of 0 to 65535")


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


# --- polarity, depth, text, colour spaces ---


@pytest.mark.parametrize(("bits", "endian"), [(12, "<"), (16, "<"), (8, ">"), (4, "<"), (1, ">")])
@pytest.mark.parametrize("photometric", [0, 1])
def test_polarity_and_depth_of_tiffs_are_applied(bits: int, endian: str, photometric: int) -> None:
    levels = np.array([[0, 1, 2**bits // 2, 2**bits - 1]])
    if (bits, photometric) == (12, 0):
        with pytest.raises(UnreadableFile, match=r"BitsPerSample \(12,\)"):  # unknown to Pillow
            read_image(image_encoders.tiff(levels[..., None], bits, photometric, endian), "x")
        return
    image = read_image(image_encoders.tiff(levels[..., None], bits, photometric, endian), "x")
    expected = np.rint(levels * 255 / (2**bits - 1))
    assert np.array_equal(image.pixels[..., 1], 255 - expected if photometric == 0 else expected)
    assert (f"{bits} bits per channel rounded to 8" in image.notes) == (bits > 8)


@pytest.mark.parametrize("bits", [8, 16])
def test_signed_tiffs_are_refused(bits: int) -> None:
    content = image_encoders.tiff(np.zeros((2, 2, 1), int), bits, 1, tags={339: 2})
    with pytest.raises(UnreadableFile, match=f"{bits}-bit samples are signed"):
        read_image(content, "x")


@pytest.mark.parametrize(("bits", "channels", "photometric"), [(16, 2, 1), (32, 3, 2), (16, 3, 8)])
def test_kinds_of_tiff_unknown_to_pillow_are_refused_by_their_tags(
    bits: int, channels: int, photometric: int
) -> None:
    samples = RANDOM.integers(0, 2**bits, (3, 4, channels))
    with pytest.raises(UnreadableFile) as caught:
        read_image(image_encoders.tiff(samples, bits, photometric), "x")
    tags = f"BitsPerSample {(bits,) * channels}, PhotometricInterpretation {photometric}"
    assert tags in caught.value.problem and "16 bits" in caught.value.rule
    assert "PNG" in caught.value.remedy


def test_avif_of_10_bits_is_rounded_with_a_note() -> None:
    image = read_image(image_encoders.AVIF_10_BIT, "x")
    assert image.notes == ("10 bits per channel rounded to 8",)
    ramp = np.rint(np.linspace(0, 255, 16))
    np.testing.assert_allclose(image.pixels[..., 0], np.tile(ramp, (16, 1)), atol=1)
    np.testing.assert_allclose(image.pixels[..., 1], np.tile(ramp[:, None], 16), atol=1)


def test_jpeg2000_beyond_8_bits_is_refused_in_colour_because_pillow_turns_white_to_black() -> None:
    stream = BytesIO()
    Image.fromarray(np.full((16, 16, 3), 255, np.uint8)).save(stream, "JPEG2000")
    content = stream.getvalue()
    assert not read_image(content, "x").notes
    header = content.index(bytes.fromhex("0003" + 3 * "070101"))  # 3 components of 8 bits
    deep = content[: header + 2] + bytes.fromhex(3 * "0b0101") + content[header + 11 :]
    with pytest.raises(UnreadableFile, match="12 bits"):
        read_image(deep, "x")


def test_channels_of_unknown_use_are_dropped_with_a_note() -> None:
    samples = RANDOM.integers(0, 256, (3, 4, 4))
    image = read_image(image_encoders.tiff(samples, 8, 2, tags={338: 0}), "x")
    assert np.array_equal(image.pixels, samples[..., :3])
    assert image.notes == ("channels beyond RGB and alpha dropped",)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_level_of_gray_png(bits: int) -> None:
    levels = np.array([[[0], [1], [2**bits - 1]]])
    content = image_encoders.png(levels, bits, 0, {b"tRNS": b"\0\1"})
    alpha = read_image(content, "x").alpha
    assert alpha is not None and np.array_equal(alpha == 0, levels[..., 0] == 1)


PIXELS = RANDOM.integers(0, 256, (6, 5, 3))


def test_png_with_large_texts_is_read() -> None:
    text = {b"zTXt": b"workflow\0\0" + zlib.compress(bytes(3_000_000))}
    content = image_encoders.png(PIXELS, 8, 2, text)
    image = read_image(content, "x")
    assert np.array_equal(image.pixels, PIXELS) and image.notes == ()
    assert image.metadata.notes == ("not kept: text too large to read",)
    assert read_image_size(content, "x") == (6, 5)
    profile = {b"iCCP": b"p\0\0" + zlib.compress(bytes(3_000_000))}
    image = read_image(image_encoders.png(PIXELS, 8, 2, profile), "x")
    assert np.array_equal(image.pixels, PIXELS) and image.notes == (NOTE_DAMAGED_PROFILE,)


@pytest.mark.parametrize(
    ("chunks", "note"),
    [
        ({b"gAMA": struct.pack(">I", 100000)}, "gamma 1 of its gAMA chunk not applied"),
        ({b"gAMA": struct.pack(">I", 45455)}, None),
        ({b"gAMA": struct.pack(">I", 100000), b"sRGB": b"\0"}, None),
        ({b"cHRM": struct.pack(">8I", *range(1, 80000, 10000))}, "primaries of its cHRM chunk"),
        ({b"cICP": bytes((9, 16, 0, 1))}, "(primaries 9, transfer 16)"),
        ({b"cICP": bytes((1, 13, 0, 1)), b"gAMA": struct.pack(">I", 100000)}, None),
    ],
)
def test_colour_spaces_of_png_that_are_not_applied_are_noted(
    chunks: dict[bytes, bytes], note: str | None
) -> None:
    image = read_image(image_encoders.png(PIXELS, 8, 2, chunks), "x")
    assert np.array_equal(image.pixels, PIXELS)
    assert (note in image.notes[0]) if note else image.notes == ()


def with_profile(profile: bytes) -> bytes:
    return image_encoders.png(PIXELS, 8, 2, {b"iCCP": b"p\0\0" + zlib.compress(profile)})


def test_icc_profile_is_converted_to_srgb_or_not_applied_with_a_note() -> None:
    content = with_profile(image_encoders.icc_profile(image_encoders.ADOBE, 2.2, b"Wide\x1b[31m"))
    image = read_image(content, "x")
    expected = image_encoders.to_srgb(PIXELS, image_encoders.ADOBE, 2.2)
    assert np.abs(image.pixels - expected).max() <= 3 and np.abs(image.pixels - PIXELS).max() > 9
    assert image.notes == ("colours converted from the ICC profile 'Wide[31m' to sRGB",)
    stored = read_image(content, "x", apply_profile=False)
    assert np.array_equal(stored.pixels, PIXELS)
    assert stored.notes == ("ICC profile 'Wide[31m' not applied: levels as stored",)


def test_profile_of_srgb_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = read_image(with_profile(srgb), "x")
    assert np.array_equal(image.pixels, PIXELS) and image.notes == ()


@pytest.mark.parametrize("profile", [b"", b"no profile", image_encoders.icc_profile(None, 2.2)])
def test_damaged_or_unsuited_profile_is_ignored_with_a_note(profile: bytes) -> None:
    image = read_image(with_profile(profile), "x")
    assert np.array_equal(image.pixels, PIXELS)
    assert image.notes == ((NOTE_DAMAGED_PROFILE,) if profile else ())


def test_cmyk_is_converted_by_its_profile(tmp_path: Path) -> None:
    inks = np.zeros((4, 4, 4), np.uint8)
    inks[2:, :, 0] = 255
    path = tmp_path / "print.tif"
    Image.fromarray(inks, "CMYK").save(path, icc_profile=image_encoders.cmyk_profile())
    image = read_image(path)
    assert (image.pixels[0, 0] >= 250).all()
    red, green, blue = image.pixels[3, 0]
    assert red > 200 and green < 60 and blue < 60
    assert image.notes == ("CMYK converted to sRGB by its ICC profile",)
    Image.fromarray(inks, "CMYK").save(path, icc_profile=b"damaged")
    assert "damaged" in read_image(path).notes[0]
