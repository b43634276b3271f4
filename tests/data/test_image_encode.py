"""Images written in bands: read back by other programs, whole or not at all, in bounded memory."""

import errno
import io
import resource
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from esrjax.data.image_encode import Band
from esrjax.data.image_io import read_image, write_bands, write_image
from esrjax.data.image_metadata import ImageMetadata
from esrjax.errors import InvalidOutput, UnwritableFile

RANDOM = np.random.default_rng(0)


def exif_bytes() -> bytes:
    exif = Image.Exif()
    exif[0x0132], exif[0x8769] = "2020:01:02 03:04:05", {0x9003: "2020:01:01 00:00:00"}
    exif[0x8825] = {1: "N", 2: (1.0, 2.5, 3.25)}
    return exif.tobytes()


def image(h: int, w: int, channels: int) -> Band:
    """Half noise, half flat with few levels, where a Paeth predictor has many ties."""
    pixels = RANDOM.integers(0, 256, (h, w, channels), np.uint8)
    pixels[h // 2 :] = pixels[h // 2 :] // 86
    return pixels


def split(pixels: Band, *heights: int) -> list[Band]:
    return np.split(pixels, np.cumsum(heights))


# The widest rows are longer than the blocks that are filtered at once, 128 KiB.
@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 9), (40, 33), (130, 700), (5, 50_000)])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp"])
def test_bands_read_back(
    tmp_path: Path, suffix: str, channels: int, shape: tuple[int, int]
) -> None:
    if (suffix, channels) == (".bmp", 4) or (suffix == ".webp" and max(shape) > 16383):
        pytest.skip("the format cannot store it")
    pixels, path = image(*shape, channels), tmp_path / f"image{suffix}"
    pixels[..., 3:] |= 1  # of transparent pixels WebP does not store the colors
    assert write_bands(path, shape, split(pixels, shape[0] // 3, shape[0] // 4)) == ()
    with Image.open(path) as decoded:
        np.testing.assert_array_equal(np.asarray(decoded), pixels)
    if suffix == ".tif":
        tifffile = pytest.importorskip("tifffile")
        np.testing.assert_array_equal(tifffile.imread(path), pixels)


def test_png_is_sound_by_its_checksums_and_has_the_chunks_of_pillow(tmp_path: Path) -> None:
    pixels, exif = image(40, 33, 3), exif_bytes()
    write_image(tmp_path / "image.png", pixels, metadata=ImageMetadata(dpi=(300, 72), exif=exif))
    Image.fromarray(pixels).save(tmp_path / "pillow.png", dpi=(300, 72), exif=exif)
    with Image.open(tmp_path / "image.png") as decoded:
        decoded.verify()  # CRC of all chunks
    with Image.open(tmp_path / "image.png") as ours, Image.open(tmp_path / "pillow.png") as theirs:
        assert ours.info == theirs.info and ours.info["exif"]


def test_flat_png_is_small(tmp_path: Path) -> None:
    write_image(tmp_path / "image.png", np.full((1000, 1000, 3), 7, np.uint8))
    assert (tmp_path / "image.png").stat().st_size < 10_000  # of 3 MB


def tiff_tags(decoded: Any) -> dict[int, Any]:
    return dict(decoded.tag_v2)


def test_tiff_has_strips_and_the_metadata_as_of_pillow(tmp_path: Path) -> None:
    pixels, exif, dpi = image(3000, 200, 3), exif_bytes(), (300, 150.5)
    write_image(tmp_path / "image.tif", pixels, metadata=ImageMetadata(dpi=dpi, exif=exif))
    Image.fromarray(pixels).save(tmp_path / "pillow.tif", dpi=dpi, exif=exif)
    layout = {273, 278, 279, 34665, 34853}  # strips, and the places of directories
    with Image.open(tmp_path / "image.tif") as ours, Image.open(tmp_path / "pillow.tif") as theirs:
        tags, expected = tiff_tags(ours), tiff_tags(theirs)
        assert len(tags[273]) == 2 and sum(tags[279]) == 3000 * 200 * 3
        assert tags.keys() == expected.keys()
        assert {t: tags[t] for t in tags if t not in layout} == {
            t: expected[t] for t in expected if t not in layout
        }
        for directory in (0x8769, 0x8825):
            assert ours.getexif().get_ifd(directory) == theirs.getexif().get_ifd(directory)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 33])
def test_bmp_is_that_of_pillow(tmp_path: Path, width: int) -> None:
    pixels, stream = image(9, width, 3), io.BytesIO()
    Image.fromarray(pixels).save(stream, "BMP", dpi=(300, 150))
    write_bands(
        tmp_path / "image.bmp", (9, width), split(pixels, 4, 4), ImageMetadata(dpi=(300, 150))
    )
    assert (tmp_path / "image.bmp").read_bytes() == stream.getvalue()


@pytest.mark.parametrize(
    ("heights", "problem"),
    [((4, 3), "3 rows"), ((4, 4, 4), r"\(4, 6, 3\) of \(10, 6, 3\)"), ((), "10 rows")],
)
def test_bands_of_another_height_are_reported(
    tmp_path: Path, heights: tuple[int, ...], problem: str
) -> None:
    bands = [np.zeros((height, 6, 3), np.uint8) for height in heights]
    with pytest.raises(UnwritableFile, match=problem):
        write_bands(tmp_path / "image.png", (10, 6), bands)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("error", [InvalidOutput("NaN", rule="", remedy=""), KeyboardInterrupt()])
def test_band_that_cannot_be_computed_leaves_the_old_file(
    tmp_path: Path, suffix: str, error: BaseException
) -> None:
    def bands() -> Iterator[Band]:
        yield old[:20]
        yield old[20:30]
        raise error

    old, path = image(40, 30, 3), tmp_path / f"image{suffix}"
    write_image(path, old)
    content = path.read_bytes()
    with pytest.raises(type(error)):
        write_bands(path, (40, 30), bands())
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp"])
@pytest.mark.parametrize("is_at_the_end", [False, True])
def test_disk_that_becomes_full_leaves_the_old_file(
    tmp_path: Path, suffix: str, is_at_the_end: bool
) -> None:
    """A limit on the size of files stands for the disk."""
    pixels, path = image(200, 100, 3), tmp_path / f"image{suffix}"
    write_image(path, pixels)
    content = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = len(content) - 1 if is_at_the_end else 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(UnwritableFile, match="too large") as caught:
            write_bands(path, (200, 100), split(pixels, 50, 50, 50))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_memory_does_not_grow_with_the_height(tmp_path: Path, suffix: str) -> None:
    def bands(num_bands: int) -> Iterator[Band]:
        for level in range(num_bands):
            yield np.full((100, 1000, 3), level, np.uint8)  # 300 kB

    def peak_bytes(num_bands: int) -> int:
        tracemalloc.start()
        write_bands(tmp_path / f"image{suffix}", (100 * num_bands, 1000), bands(num_bands))
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(2)  # imports
    few, many = peak_bytes(8), peak_bytes(32)
    assert many < few + 150_000 and many < 3_500_000  # the image has 9.6 MB
    assert read_image(tmp_path / f"image{suffix}").pixels.shape == (3200, 1000, 3)
