"""Fusion of images: by weights, or by closeness to their mean."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from esrjax.data.image_io import read_image, write_image
from esrjax.evaluation.fuse_images import (
    adaptive_blend,
    adaptive_weighted_mean_uint8,
    weighted_blend,
    weighted_mean_uint8,
)


def noise(seed, h=6, w=5):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def test_adaptive_weights_of_two_images_are_always_one_half():
    for seed in range(20):
        a, b = noise(seed), noise(100 + seed) // (1 + seed)
        half = (a.astype(int) + b) // 2
        np.testing.assert_array_equal(adaptive_weighted_mean_uint8([a, b]), half)
        np.testing.assert_array_equal(adaptive_weighted_mean_uint8([b, a]), half)
    grid = np.stack(np.mgrid[0:256, 0:256, 0:1], -1)[..., 0, :].astype(np.uint8)
    a, b = grid[..., :1].repeat(3, -1), grid[..., 1:2].repeat(3, -1)  # all pairs of levels
    np.testing.assert_array_equal(adaptive_weighted_mean_uint8([a, b]), (a.astype(int) + b) // 2)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_fusion_of_equal_images_is_that_image(count):
    a = noise(0)
    np.testing.assert_array_equal(adaptive_weighted_mean_uint8([a] * count), a)
    np.testing.assert_array_equal(weighted_mean_uint8([a] * count, [0.1] * count), a)


def test_outlier_of_three_images_has_the_smallest_weight():
    a = noise(0) // 2
    shift = adaptive_weighted_mean_uint8([a, a, a + np.uint8(90)]).astype(int) - a
    assert shift.max() < 30 and shift.min() > 0  # the plain mean is 30 levels above


def test_weights_are_normalized_and_halves_rounded_to_even():
    a, b = np.full((1, 1, 3), 10, np.uint8), np.full((1, 1, 3), 13, np.uint8)
    assert weighted_mean_uint8([a, b], [0.5, 0.5])[0, 0, 0] == 12
    assert weighted_mean_uint8([a, b], [2, 1])[0, 0, 0] == 11
    assert weighted_mean_uint8([a, b], [0, 1])[0, 0, 0] == 13


def test_adaptive_blend_rounds_floats_to_uint8_first():
    a, b = (np.random.default_rng(seed).random((4, 5, 3), np.float32) for seed in (0, 1))
    rounded = [np.rint(x * 255).astype(np.uint8) for x in (a, b)]
    blended = adaptive_blend([a, b])
    assert blended.dtype == np.float32
    np.testing.assert_array_equal(np.rint(blended * 255), adaptive_weighted_mean_uint8(rounded))


def test_folders_are_fused_by_name(esrjax, tmp_path):
    for folder, seed in (("a", 0), ("b", 10), ("c", 20)):
        for i, name in enumerate(("one", "two")):
            write_image(tmp_path / folder / f"{name}.png", noise(seed + i))
    folders = [tmp_path / folder for folder in "abc"]
    result = esrjax("fuse", *folders, "-o", tmp_path / "out", "--weights", "1,2,1")
    assert result.code == 0 and "2 images" in result.out and str(tmp_path / "out") in result.out
    expected = weighted_mean_uint8([noise(seed) for seed in (1, 11, 21)], [1, 2, 1])
    np.testing.assert_array_equal(read_image(tmp_path / "out/two.png").pixels, expected)
    esrjax("fuse", *folders[:2], "-o", tmp_path / "half", "--adaptive")
    fused = read_image(tmp_path / "half/one.png").pixels
    np.testing.assert_array_equal(fused, (noise(0).astype(int) + noise(10)) // 2)
    images = [folder / "one.png" for folder in folders[:2]]
    assert esrjax("fuse", *images, "-o", tmp_path / "single.png").code == 0
    fused = read_image(tmp_path / "single.png").pixels
    np.testing.assert_array_equal(fused, weighted_mean_uint8([noise(0), noise(10)], [1, 1]))


@pytest.mark.parametrize("output", ["a", "a/x.png"])
def test_inputs_are_not_overwritten(esrjax, tmp_path, output):
    for name in "ab":
        write_image(tmp_path / name / "x.png", noise(ord(name)))
    inputs = [tmp_path / output.replace("a", name, 1) for name in "ab"]
    result = esrjax("fuse", *inputs, "-o", tmp_path / output)
    assert result.code == 2 and "x.png' would be overwritten" in result.err
    np.testing.assert_array_equal(read_image(tmp_path / "a/x.png").pixels, noise(ord("a")))


def test_one_image_may_be_given_twice(esrjax, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    write_image(tmp_path / "a.png", image)
    twice = [tmp_path / "a.png"] * 2
    assert esrjax("fuse", *twice, "-o", tmp_path / "mean.png", "--weights", "1,3").code == 0
    np.testing.assert_array_equal(read_image(tmp_path / "mean.png").pixels, image)


def test_metadata_of_the_first_image_is_kept_and_that_of_others_noted(esrjax, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.DateTime] = "2026:11:30 12:00:00"
    for name, options in {"a": {"exif": exif, "dpi": (300, 300)}, "b": {"dpi": (72, 72)}}.items():
        image = Image.fromarray(np.zeros((4, 5, 3), np.uint8))
        image.save(tmp_path / f"{name}.png", **options)
    a, b = (tmp_path / f"{name}.png" for name in "ab")
    result = esrjax("fuse", a, b, "-o", tmp_path / "mean.png")
    metadata = read_image(tmp_path / "mean.png").metadata
    assert (metadata.exif, metadata.dpi) == (
        read_image(a).metadata.exif,
        read_image(a).metadata.dpi,
    )
    assert f"{b}: EXIF data and dpi not kept" in result.err and f"{a}: " not in result.err
    result = esrjax("fuse", a, a, "-o", tmp_path / "mean.bmp")
    assert result.err == f"{tmp_path / 'mean.bmp'}: BMP cannot store EXIF data\n"


def test_weighted_blend_is_a_weighted_mean():
    half, full = (np.full((2, 2, 3), level, np.float32) for level in (0.5, 1))
    assert np.all(weighted_blend([1, 3])([half, full]) == 0.875)
    assert weighted_blend([7.0])([half]).dtype == np.float32
