"""Fusing pictures: by given weights, or by closeness to their mean."""

import numpy as np
import pytest

from esrjax.pictures.files import read, write
from esrjax.pictures.upscale import adaptive
from esrjax.pictures.upscale.fusion import closest, mean


def noise(seed, h=6, w=5):
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def test_of_two_pictures_each_weighs_one_half_whatever_they_are():
    for seed in range(20):
        a, b = noise(seed), noise(100 + seed) // (1 + seed)
        half = (a.astype(int) + b) // 2
        np.testing.assert_array_equal(closest([a, b]), half)
        np.testing.assert_array_equal(closest([b, a]), half)
    every = np.stack(np.mgrid[0:256, 0:256, 0:1], -1)[..., 0, :].astype(np.uint8)
    a, b = every[..., :1].repeat(3, -1), every[..., 1:2].repeat(3, -1)  # all pairs of levels
    np.testing.assert_array_equal(closest([a, b]), (a.astype(int) + b) // 2)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_equal_pictures_are_what_they_are_fused_to(count):
    a = noise(0)
    np.testing.assert_array_equal(closest([a] * count), a)
    np.testing.assert_array_equal(mean([a] * count, [0.1] * count), a)


def test_of_three_pictures_the_odd_one_counts_least():
    a = noise(0) // 2
    found = closest([a, a, a + np.uint8(90)]).astype(int) - a
    assert found.max() < 30 and found.min() > 0  # the plain mean is 30 levels above


def test_given_weights_are_shares_and_halves_go_to_even():
    a, b = np.full((1, 1, 3), 10, np.uint8), np.full((1, 1, 3), 13, np.uint8)
    assert mean([a, b], [0.5, 0.5])[0, 0, 0] == 12 and mean([a, b], [2, 1])[0, 0, 0] == 11
    assert mean([a, b], [0, 1])[0, 0, 0] == 13


def test_floats_are_fused_as_the_bytes_they_become():
    a, b = (np.random.default_rng(seed).random((4, 5, 3), np.float32) for seed in (0, 1))
    bytes_of = [np.rint(x * 255).astype(np.uint8) for x in (a, b)]
    found = adaptive([a, b])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(np.rint(found * 255), closest(bytes_of))


def test_folders_are_fused_by_name(esrjax, tmp_path):
    for folder, seed in (("a", 0), ("b", 10), ("c", 20)):
        for i, name in enumerate(("one", "two")):
            write(tmp_path / folder / f"{name}.png", noise(seed + i))
    folders = [tmp_path / folder for folder in "abc"]
    said = esrjax("fuse", *folders, "-o", tmp_path / "out", "--weights", "1,2,1")
    assert (said.code, said.out) == (0, f"2 pictures in {tmp_path / 'out'}\n")
    wanted = mean([noise(seed) for seed in (1, 11, 21)], [1, 2, 1])
    np.testing.assert_array_equal(read(tmp_path / "out/two.png").pixels, wanted)
    said = esrjax("fuse", *folders[:2], "-o", tmp_path / "half", "--adaptive")
    found = read(tmp_path / "half/one.png").pixels
    np.testing.assert_array_equal(found, (noise(0).astype(int) + noise(10)) // 2)
    singles = [folder / "one.png" for folder in folders[:2]]
    assert esrjax("fuse", *singles, "-o", tmp_path / "single.png").code == 0
    found = read(tmp_path / "single.png").pixels
    np.testing.assert_array_equal(found, mean([noise(0), noise(10)], [1, 1]))


@pytest.mark.parametrize("where", ["a", "a/x.png"])
def test_what_is_fused_is_not_replaced(esrjax, tmp_path, where):
    for name in "ab":
        write(tmp_path / name / "x.png", noise(ord(name)))
    places = [tmp_path / where.replace("a", name, 1) for name in "ab"]
    said = esrjax("fuse", *places, "-o", tmp_path / where)
    assert said.code == 2 and "would be replaced" in said.err
    np.testing.assert_array_equal(read(tmp_path / "a/x.png").pixels, noise(ord("a")))
