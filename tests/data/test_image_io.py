"""Image files: any mode in, 8-bit RGB out; writing is atomic; every error is reported."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from esrjax.data import image_io
from esrjax.data.image_io import Pixels, read_image, write_image
from esrjax.errors import UnreadableFile, UnwritableFile

RANDOM = np.random.default_rng(0)
GRAY = "grey repeated in three channels"
WHITE = "transparency composited over white"
PALETTE = "palette converted to RGB"
ROUNDED = "16 bits per channel rounded to 8"


def noise(*shape: int) -> Pixels:
    return RANDOM.integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: Any, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def over_white(colors: Pixels, alpha: Pixels) -> Pixels:
    opacity = alpha[..., None] / 255
    return np.rint(colors * opacity + 255 * (1 - opacity)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".bmp", ".PNG"])
def test_lossless_formats_round_trip(tmp_path: Path, suffix: str) -> None:
    pixels = noise(9, 7, 3)
    write_image(tmp_path / f"new/folder/image{suffix}", pixels)
    decoded = read_image(tmp_path / f"new/folder/image{suffix}")
    assert np.array_equal(decoded.pixels, pixels)
    assert decoded.notes == ()
    assert decoded.pixels.flags.writeable


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_is_close_and_not_chroma_subsampled(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp, ramp[:, None], ramp[::-1]), axis=-1)
    write_image(tmp_path / f"image{suffix}", pixels)
    decoded = read_image(tmp_path / f"image{suffix}").pixels
    assert np.abs(decoded.astype(int) - pixels).max() <= 6
    with Image.open(tmp_path / f"image{suffix}") as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


def test_gray_is_repeated_in_three_channels(tmp_path: Path) -> None:
    gray = noise(9, 7)
    decoded = read_image(save(tmp_path / "gray.png", gray))
    assert np.array_equal(decoded.pixels, np.stack([gray] * 3, axis=-1))
    assert decoded.notes == (GRAY,)


def test_one_bit_images_become_black_and_white(tmp_path: Path) -> None:
    bits = noise(9, 7) > 127
    decoded = read_image(save(tmp_path / "bits.png", bits))
    assert np.array_equal(decoded.pixels, np.stack([bits * np.uint8(255)] * 3, axis=-1))
    assert decoded.notes == (GRAY,)


def test_palette_is_converted_to_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(noise(9, 7, 3)).convert("P")
    image.save(tmp_path / "palette.png")
    decoded = read_image(tmp_path / "palette.png")
    assert np.array_equal(decoded.pixels, np.asarray(image.convert("RGB")))
    assert decoded.notes == (PALETTE,)


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255, 7])])
def test_transparent_palette_color_becomes_white(tmp_path: Path, transparency: Any) -> None:
    image = Image.fromarray(noise(9, 7) % 4, "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image.save(tmp_path / "palette.png", transparency=transparency)
    decoded = read_image(tmp_path / "palette.png")
    indices = np.asarray(image)
    alpha = [255, 255, 255, 0] if transparency == 3 else list(transparency)
    colors = np.asarray(image.convert("RGB"))
    assert np.array_equal(decoded.pixels, over_white(colors, np.array(alpha, np.uint8)[indices]))
    assert decoded.notes == (PALETTE, WHITE)


def test_transparent_key_color_becomes_white(tmp_path: Path) -> None:
    pixels = noise(9, 7, 3)
    save(tmp_path / "key.png", pixels, transparency=tuple(pixels[2, 3].tolist()))
    pixels[2, 3] = 255
    decoded = read_image(tmp_path / "key.png")
    assert np.array_equal(decoded.pixels, pixels)
    assert decoded.notes == (WHITE,)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_composited_over_white(tmp_path: Path, channels: int) -> None:
    raw = noise(40, 30, channels)
    decoded = read_image(save(tmp_path / "alpha.png", raw))
    assert np.array_equal(
        decoded.pixels,
        np.broadcast_to(over_white(raw[..., :-1], raw[..., -1]), (40, 30, 3)),
    )
    assert decoded.notes == ((GRAY, WHITE) if channels == 2 else (WHITE,))


def test_opaque_alpha_is_dropped_without_a_note(tmp_path: Path) -> None:
    raw = noise(9, 7, 4)
    raw[..., 3] = 255
    decoded = read_image(save(tmp_path / "opaque.png", raw))
    assert np.array_equal(decoded.pixels, raw[..., :3])
    assert decoded.notes == ()


def test_16_bits_are_rounded_not_truncated(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    decoded = read_image(save(tmp_path / "deep.png", levels))
    assert np.array_equal(decoded.pixels[..., 1], np.rint(levels / 257))
    assert decoded.notes == (GRAY, ROUNDED)


def test_cmyk_is_converted_to_rgb(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    decoded = read_image(save(tmp_path / "print.jpg", flat, mode="CMYK", quality=95))
    assert np.abs(decoded.pixels.astype(int) - flat).max() <= 3
    assert decoded.notes == ("CMYK converted to RGB without its color profile",)


def test_images_up_to_pillows_limit_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "large.png", noise(9, 7, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32)  # 63 pixels: a warning, an error from 65 on
    assert read_image(tmp_path / "large.png").pixels.shape == (9, 7, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(UnreadableFile, match=r"\(63 pixels\) exceeds limit of 62 pixels"):
        read_image(tmp_path / "large.png")


def test_damaged_exif_block_is_ignored(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", noise(9, 7, 3), exif=b"Exif\0\0II*\0\x08\0\0\0\xff")
    assert read_image(path).pixels.shape == (9, 7, 3)


def unreadable_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no images, with a part of the expected reason."""
    png = save(tmp_path / "valid.png", noise(40, 30, 3)).read_bytes()
    jpeg = save(tmp_path / "valid.jpg", noise(40, 30, 3)).read_bytes()
    contents = {
        "half.png": (png[: len(png) // 2], "truncated"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "head.png": (png[:10], "not an image"),
        "text.png": (b"not an image at all", "not an image"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        "empty.png": (b"", "empty"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    paths = {name: (tmp_path / name, reason) for name, (_, reason) in contents.items()}
    paths["folder.png"] = (tmp_path / "folder.png", "folder")
    paths["missing.png"] = (tmp_path / "missing.png", "no such file")
    return paths


def test_unreadable_file_is_reported_with_the_reason(tmp_path: Path) -> None:
    for path, reason in unreadable_files(tmp_path).values():
        with pytest.raises(UnreadableFile) as caught:
            read_image(path)
        assert f"'{path}'" in caught.value.problem
        assert reason in caught.value.problem
        assert "PNG, JPEG, WEBP, TIFF, BMP, GIF, PPM, JPEG2000, AVIF" in caught.value.rule
        assert caught.value.remedy


@pytest.mark.parametrize("path", ["a" * 300 + ".png", "a\0.png", "/dev/zero"])
def test_path_that_cannot_be_a_file_is_reported(path: str) -> None:
    with pytest.raises(UnreadableFile, match=r"no such file|not a file"):
        read_image(path)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damaged_file_is_read_or_reported(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    suffix = data.draw(st.sampled_from(["png", "jpg", "webp", "tif", "bmp"]))
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    content = bytearray(save(folder / f"valid.{suffix}", pixels).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "damaged").write_bytes(content)
    try:
        decoded = read_image(folder / "damaged")
    except UnreadableFile:
        return
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.shape[2] == 3


@pytest.mark.parametrize(
    ("name", "pixels", "reason"),
    [
        ("image.gif", noise(4, 4, 3), "'.gif'"),
        ("image", noise(4, 4, 3), "''"),
        ("image.png", noise(4, 4), "uint8 (4, 4)"),
        ("image.png", noise(4, 4, 3) / 255, "float64 (4, 4, 3)"),
        ("image.png", noise(4, 0, 3), "uint8 (4, 0, 3)"),
    ],
)
def test_unwritable_image_is_reported(tmp_path: Path, name: str, pixels: Any, reason: str) -> None:
    with pytest.raises(UnwritableFile) as caught:
        write_image(tmp_path / name, pixels)
    assert f"'{tmp_path / name}'" in caught.value.problem and reason in caught.value.problem
    assert ".png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp" in caught.value.rule
    assert caught.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "shape"), [(".webp", (1, 16384)), (".jpg", (1, 65501)), (".tif", (40000, 40000))]
)
def test_image_beyond_the_limit_of_a_format_is_reported(
    tmp_path: Path, suffix: str, shape: tuple[int, int]
) -> None:
    pixels = np.broadcast_to(np.uint8(7), (*shape, 3))
    with pytest.raises(UnwritableFile, match=f"{shape[1]} x {shape[0]} pixels"):
        write_image(tmp_path / f"image{suffix}", pixels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_alpha_is_read_and_written(tmp_path: Path, suffix: str) -> None:
    raw = noise(40, 30, 4)
    raw[0, 0, 3] = 0
    decoded = read_image(save(tmp_path / "alpha.png", raw))
    assert decoded.alpha is not None and np.array_equal(decoded.alpha, raw[..., 3])
    assert write_image(tmp_path / f"out{suffix}", decoded.pixels, decoded.alpha) == ()
    again = read_image(tmp_path / f"out{suffix}")
    assert again.alpha is not None and np.array_equal(again.alpha, decoded.alpha)
    assert np.abs(again.pixels.astype(int) - decoded.pixels).max() <= 1
    # Over black, the file looks as the original does, up to a rounding of the composition.
    written = np.asarray(Image.open(tmp_path / f"out{suffix}")).astype(int)
    over_black = (written[..., :3] - raw[..., :3]) * (raw[..., 3:] / 255)
    assert np.abs(over_black).max() <= 1


def test_opaque_image_has_no_alpha(tmp_path: Path) -> None:
    assert read_image(save(tmp_path / "rgb.png", noise(4, 4, 3))).alpha is None
    opaque = np.dstack([noise(4, 4, 3), np.full((4, 4), 255, np.uint8)])
    assert read_image(save(tmp_path / "rgba.png", opaque)).alpha is None


def photo_with_metadata(path: Path, orientation: int = 6) -> Path:
    exif = Image.Exif()
    exif[0x010E], exif[0x0132], exif[0x0112] = "holiday", "2020:01:02 03:04:05", orientation
    exif[0x8769] = {0x9003: "2020:01:01 00:00:00", 0xA002: 8, 0xA003: 4, 0x927C: b"maker"}
    exif[0x8825] = {1: "N"}
    return save(path, noise(4, 8, 3), exif=exif.tobytes(), dpi=(300, 150))


@pytest.mark.parametrize("source", [".jpg", ".png", ".tif", ".webp", ".avif"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".tif", ".webp"])
def test_date_and_resolution_are_kept_and_orientation_is_not(
    tmp_path: Path, source: str, target: str
) -> None:
    decoded = read_image(photo_with_metadata(tmp_path / f"in{source}"))
    assert decoded.pixels.shape == (8, 4, 3)
    assert decoded.metadata.notes == ("not kept: EXIF maker notes",)
    notes = write_image(tmp_path / f"out{target}", decoded.pixels, metadata=decoded.metadata)
    with Image.open(tmp_path / f"out{target}") as image:
        exif = image.getexif()
        assert exif[0x010E] == "holiday" and exif[0x0132] == "2020:01:02 03:04:05"
        assert exif.get_ifd(0x8769) == {0x9003: "2020:01:01 00:00:00"}
        assert exif.get_ifd(0x8825) == {1: "N"}
        assert exif.get(0x0112, 1) == 1
        has_dpi = source not in (".webp", ".avif") and target != ".webp"
        assert not has_dpi or np.allclose(image.info["dpi"], (300, 150), atol=0.02)
    dpi_lost = source not in (".webp", ".avif") and target == ".webp"
    assert notes == (("WEBP cannot store the resolution in dpi",) if dpi_lost else ())


def test_what_a_format_cannot_store_is_noted(tmp_path: Path) -> None:
    metadata = read_image(photo_with_metadata(tmp_path / "in.jpg")).metadata
    pixels, alpha = noise(4, 4, 3), noise(4, 4)
    assert len(write_image(tmp_path / "out.bmp", pixels, alpha, metadata)) == 2
    assert len(write_image(tmp_path / "out.jpg", pixels, alpha, metadata)) == 1
    assert np.array_equal(read_image(tmp_path / "out.bmp").pixels, pixels)


def test_lost_metadata_is_noted(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x")
    metadata = read_image(save(tmp_path / "text.png", noise(4, 4, 3), pnginfo=info)).metadata
    assert metadata.notes == ("not kept: text",)
    metadata = read_image(save(tmp_path / "xmp.jpg", noise(4, 4, 3), xmp=b"<x/>")).metadata
    assert metadata.notes == ("not kept: XMP",)


def test_alpha_of_another_size_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UnwritableFile, match=re.escape("uint8 (3, 4)")):
        write_image(tmp_path / "image.png", noise(4, 4, 3), noise(3, 4))


def test_folder_in_place_of_an_image_is_reported(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UnwritableFile, match="Is a directory") as caught:
        write_image(tmp_path / "folder.png", noise(4, 4, 3))
    assert f"'{tmp_path / 'folder.png'}'" in caught.value.problem
    assert caught.value.rule and caught.value.remedy
    assert list(tmp_path.iterdir()) == [tmp_path / "folder.png"]


@pytest.mark.parametrize("parent", ["file", "file/deeper"])
def test_file_in_place_of_a_folder_is_reported(tmp_path: Path, parent: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnwritableFile, match=re.escape(f"'{tmp_path / parent}'")):
        write_image(tmp_path / parent / "image.png", noise(4, 4, 3))


def raise_os_error(number: int) -> Callable[..., None]:
    def replace(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return replace


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_failed_write_keeps_the_old_image_and_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    old, path = noise(9, 7, 3), tmp_path / "image.png"
    write_image(path, old)
    monkeypatch.setattr(os, "replace", raise_os_error(number))
    with pytest.raises(UnwritableFile, match=os.strerror(number)):
        write_image(path, noise(9, 7, 3))
    assert np.array_equal(read_image(path).pixels, old)
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_image(tmp_path / "image.png", noise(9, 7, 3))
    assert list(tmp_path.iterdir()) == []


def test_files_get_the_default_permissions(tmp_path: Path) -> None:
    write_image(tmp_path / "image.png", noise(4, 4, 3))
    (tmp_path / "reference").touch()
    assert (tmp_path / "image.png").stat().st_mode == (tmp_path / "reference").stat().st_mode


def test_suffixes_are_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in image_io.SUFFIXES)
