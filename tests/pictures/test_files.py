"""Any picture in, 8-bit RGB out; nothing half-written; every mistake told."""

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
from PIL import Image

from esrjax.pictures import files
from esrjax.pictures.files import (
    PicturesNotFound,
    Pixels,
    UnreadablePicture,
    UnwritablePicture,
    find,
    read,
    write,
)

RANDOM = np.random.default_rng(0)
GREY = "grey repeated in three channels"
WHITE = "transparency laid over white"
DEEP = "16 bits per channel rounded to 8"


def noise(*shape: int) -> Pixels:
    return RANDOM.integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: Any, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def over_white(colours: Pixels, alpha: Pixels) -> Pixels:
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff", ".bmp", ".PNG"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    pixels = noise(9, 7, 3)
    write(tmp_path / f"new/folder/picture{suffix}", pixels)
    picture = read(tmp_path / f"new/folder/picture{suffix}")
    assert np.array_equal(picture.pixels, pixels)
    assert picture.notes == ()
    assert picture.pixels.flags.writeable


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_is_close_and_keeps_all_colour_samples(tmp_path: Path, suffix: str) -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp, ramp[:, None], ramp[::-1]), axis=-1)
    write(tmp_path / f"picture{suffix}", pixels)
    read_back = read(tmp_path / f"picture{suffix}").pixels
    assert np.abs(read_back.astype(int) - pixels).max() <= 6
    with Image.open(tmp_path / f"picture{suffix}") as image:
        assert [component[1:3] for component in image.layer] == [(1, 1)] * 3


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = noise(9, 7)
    picture = read(save(tmp_path / "grey.png", grey))
    assert np.array_equal(picture.pixels, np.stack([grey] * 3, axis=-1))
    assert picture.notes == (GREY,)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = noise(9, 7) > 127
    picture = read(save(tmp_path / "bits.png", bits))
    assert np.array_equal(picture.pixels, np.stack([bits * np.uint8(255)] * 3, axis=-1))
    assert picture.notes == (GREY,)


def test_palettes_are_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(noise(9, 7, 3)).convert("P")
    image.save(tmp_path / "palette.png")
    picture = read(tmp_path / "palette.png")
    assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))
    assert picture.notes == ("palette looked up",)


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255, 7])])
def test_a_transparent_palette_colour_is_white(tmp_path: Path, transparency: Any) -> None:
    image = Image.fromarray(noise(9, 7) % 4, "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    image.save(tmp_path / "palette.png", transparency=transparency)
    picture = read(tmp_path / "palette.png")
    indices = np.asarray(image)
    table = [255, 255, 255, 0] if transparency == 3 else list(transparency)
    colours = np.asarray(image.convert("RGB"))
    assert np.array_equal(picture.pixels, over_white(colours, np.array(table, np.uint8)[indices]))
    assert picture.notes == ("palette looked up", WHITE)


def test_a_transparent_key_colour_is_white(tmp_path: Path) -> None:
    pixels = noise(9, 7, 3)
    save(tmp_path / "key.png", pixels, transparency=tuple(pixels[2, 3].tolist()))
    pixels[2, 3] = 255
    picture = read(tmp_path / "key.png")
    assert np.array_equal(picture.pixels, pixels)
    assert picture.notes == (WHITE,)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_laid_over_white(tmp_path: Path, channels: int) -> None:
    samples = noise(40, 30, channels)
    picture = read(save(tmp_path / "alpha.png", samples))
    assert np.array_equal(
        picture.pixels,
        np.broadcast_to(over_white(samples[..., :-1], samples[..., -1]), (40, 30, 3)),
    )
    assert picture.notes == ((GREY, WHITE) if channels == 2 else (WHITE,))


def test_opaque_alpha_is_dropped_without_a_word(tmp_path: Path) -> None:
    samples = noise(9, 7, 4)
    samples[..., 3] = 255
    picture = read(save(tmp_path / "opaque.png", samples))
    assert np.array_equal(picture.pixels, samples[..., :3])
    assert picture.notes == ()


def test_16_bits_are_rounded_not_cut(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    picture = read(save(tmp_path / "deep.png", levels))
    assert np.array_equal(picture.pixels[..., 1], np.rint(levels / 257))
    assert picture.notes == (GREY, DEEP)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    picture = read(save(tmp_path / "print.jpg", flat, mode="CMYK", quality=95))
    assert np.abs(picture.pixels.astype(int) - flat).max() <= 3
    assert picture.notes == ("CMYK turned into RGB without its colour profile",)


def test_size_is_no_fault_up_to_pillows_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "large.png", noise(9, 7, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32)  # 63 pixels: a warning, an error from 65 on
    assert read(tmp_path / "large.png").pixels.shape == (9, 7, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)
    with pytest.raises(UnreadablePicture, match=r"\(63 pixels\) exceeds limit of 62 pixels"):
        read(tmp_path / "large.png")


def test_a_damaged_exif_block_is_no_fault(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", noise(9, 7, 3), exif=b"Exif\0\0II*\0\x08\0\0\0\xff")
    assert read(path).pixels.shape == (9, 7, 3)


def broken(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Every kind of file that is no picture, and what is said of it."""
    whole = save(tmp_path / "whole.png", noise(40, 30, 3)).read_bytes()
    photo = save(tmp_path / "whole.jpg", noise(40, 30, 3)).read_bytes()
    contents = {
        "half.png": (whole[: len(whole) // 2], "truncated"),
        "half.jpg": (photo[: len(photo) // 2], "image file is truncated"),
        "head.png": (whole[:10], "its content is not that of a picture"),
        "text.png": (b"not a picture at all", "its content is not that of a picture"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "its content is not that of a picture"),
        "empty.png": (b"", "it is empty"),
    }
    for name, (content, _) in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    paths = {name: (tmp_path / name, said) for name, (_, said) in contents.items()}
    paths["folder.png"] = (tmp_path / "folder.png", "it is a folder")
    paths["missing.png"] = (tmp_path / "missing.png", "there is no such file")
    return paths


def test_what_is_no_picture_is_named_with_the_reason(tmp_path: Path) -> None:
    for path, said in broken(tmp_path).values():
        with pytest.raises(UnreadablePicture) as caught:
            read(path)
        first, rule, remedy = str(caught.value).splitlines()
        assert first.startswith(f"'{path}' cannot be read: ")
        assert said in first
        assert rule == (
            "  rule:   a picture is a whole file in one of the formats "
            "PNG, JPEG, WEBP, TIFF, BMP, GIF, PPM, JPEG2000"
        )
        assert remedy.startswith("  remedy: ")


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damage_is_an_error_of_ours_or_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    suffix = data.draw(st.sampled_from(["png", "jpg", "webp", "tif", "bmp"]))
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    content = bytearray(save(folder / f"whole.{suffix}", pixels).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "damaged").write_bytes(content)
    try:
        picture = read(folder / "damaged")
    except UnreadablePicture:
        return
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape[2] == 3


@pytest.mark.parametrize(
    ("name", "pixels", "said"),
    [
        ("picture.gif", noise(4, 4, 3), "the suffix '.gif' names no format that is written"),
        ("picture", noise(4, 4, 3), "the suffix '' names no format that is written"),
        ("picture.png", noise(4, 4), "the pixels are uint8 (4, 4)"),
        ("picture.png", noise(4, 4, 3) / 255, "the pixels are float64 (4, 4, 3)"),
        ("picture.png", noise(4, 0, 3), "the pixels are uint8 (4, 0, 3)"),
        ("picture.webp", noise(1, 16384, 3), "WEBP cannot hold (1, 16384, 3)"),
        ("folder.png", noise(4, 4, 3), "Is a directory"),
    ],
)
def test_what_cannot_be_written_is_named(tmp_path: Path, name: str, pixels: Any, said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UnwritablePicture) as caught:
        write(tmp_path / name, pixels)
    first, rule, remedy = str(caught.value).splitlines()
    assert first.startswith(f"'{tmp_path / name}' cannot be written: {said}")
    assert rule == (
        "  rule:   pictures are uint8 (h, w, 3) and their files end in "
        ".png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp"
    )
    assert remedy == "  remedy: choose another file name or folder, or mend the pixels"
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("inner", ["file", "file/deeper"])
def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, inner: str) -> None:
    (tmp_path / "file").touch()
    said = f"'{tmp_path / inner}' cannot be a folder, a file is there"
    with pytest.raises(UnwritablePicture, match=re.escape(said)):
        write(tmp_path / inner / "picture.png", noise(4, 4, 3))


def fail(number: int) -> Callable[..., None]:
    def raiser(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return raiser


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_failed_write_leaves_the_old_picture_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    old, path = noise(9, 7, 3), tmp_path / "picture.png"
    write(path, old)
    monkeypatch.setattr(os, "replace", fail(number))
    with pytest.raises(UnwritablePicture, match=os.strerror(number)):
        write(path, noise(9, 7, 3))
    assert np.array_equal(read(path).pixels, old)
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "picture.png", noise(9, 7, 3))
    assert list(tmp_path.iterdir()) == []


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    write(tmp_path / "picture.png", noise(4, 4, 3))
    (tmp_path / "usual").touch()
    assert (tmp_path / "picture.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_find_sorts_files_and_folders_and_names_each_once(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "c.webp"):
        (tmp_path / name).touch()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/d.png").touch()
    (tmp_path / "folder.png").mkdir()
    found = find([tmp_path, tmp_path / "c.webp", tmp_path / "notes.txt"])
    assert [path.name for path in found] == ["a.JPG", "b.png", "c.webp", "notes.txt"]


def test_find_names_all_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(PicturesNotFound) as caught:
        find([tmp_path, tmp_path / "x.png", str(tmp_path / "y")])
    assert str(caught.value) == (
        f"there is nothing at '{tmp_path / 'x.png'}', '{tmp_path / 'y'}'\n"
        "  rule:   name pictures, or folders in which pictures lie "
        "(.png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp)\n"
        "  remedy: check the paths"
    )


def test_find_nothing(tmp_path: Path) -> None:
    with pytest.raises(PicturesNotFound, match=f"there is no picture in '{tmp_path}'"):
        find([tmp_path])
    with pytest.raises(PicturesNotFound, match="there is no picture in an empty list of paths"):
        find([])


def test_suffixes_are_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in files.SUFFIXES)
