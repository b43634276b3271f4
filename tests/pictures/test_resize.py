"""MATLAB's bicubic: against the published LR sets, and against its own definition."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from esrjax.pictures.files import Pixels, read
from esrjax.pictures.resize import crop, downscale, upscale

SIDES = st.integers(1, 20)
PICTURES = st.tuples(SIDES, SIDES).flatmap(lambda sides: arrays(np.uint8, (*sides, 3)))


@pytest.mark.parametrize("name", ["Set5", "Set14", "B100"])
def test_the_published_lr_pictures_come_out_bit_for_bit(reference: Path, name: str) -> None:
    for path in sorted((reference / "data" / name / "HR").glob("*.png")):
        lr = reference / "data" / name / "LR_bicubic_X4" / f"{path.stem}x4.png"
        assert np.array_equal(downscale(read(path).pixels), read(lr).pixels), path.name


def slow(row: list[int], factor: Fraction) -> list[int]:
    """One row resized in exact rationals, tap by tap."""

    def kernel(x: Fraction) -> Fraction:
        x = abs(x)
        if x <= 1:
            return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
        return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2 if x <= 2 else Fraction(0)

    shrink = min(factor, Fraction(1))
    resized: list[int] = []
    for i in range(-(-len(row) * factor.numerator // factor.denominator)):
        centre = (i + Fraction(1, 2)) / factor - Fraction(1, 2)
        reach = range(-10 * factor.denominator, len(row) + 10 * factor.denominator)
        weights = {j: kernel((centre - j) * shrink) for j in reach}
        total = sum(w * row[min(max(j, 0), len(row) - 1)] for j, w in weights.items() if w)
        mean = total / sum(weights.values())
        resized.append(min(max(int((mean + Fraction(1, 2)) // 1), 0), 255))
    return resized


@pytest.mark.parametrize("factor", [Fraction(1, 4), Fraction(1, 2), Fraction(2), Fraction(4)])
@settings(deadline=None, max_examples=10)
@given(row=st.lists(st.integers(0, 255), min_size=1, max_size=12))
def test_each_axis_is_the_definition_in_exact_arithmetic(factor: Fraction, row: list[int]) -> None:
    pixels = np.array(row, np.uint8)[:, None, None]
    resize = downscale if factor < 1 else upscale
    ours = resize(pixels, int(max(factor, 1 / factor)))
    assert ours[:, 0, 0].tolist() == slow(row, factor)
    sideways = resize(pixels.swapaxes(0, 1), int(max(factor, 1 / factor)))
    assert sideways[0, :, 0].tolist() == slow(row, factor)


def test_rows_come_first_and_are_rounded_in_between() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    first = np.array([slow(column.tolist(), Fraction(1, 4)) for column in noise[..., 0].T]).T
    both = np.array([slow(row.tolist(), Fraction(1, 4)) for row in first])
    assert np.array_equal(downscale(noise)[..., 0], both)
    assert not np.array_equal(downscale(noise.swapaxes(0, 1)).swapaxes(0, 1)[..., 0], both)


@settings(deadline=None, max_examples=25)
@given(picture=PICTURES, factor=st.sampled_from([2, 3, 4]))
def test_shapes(picture: Pixels, factor: int) -> None:
    height, width = picture.shape[:2]
    assert upscale(picture, factor).shape == (factor * height, factor * width, 3)
    assert downscale(picture, factor).shape == (-(-height // factor), -(-width // factor), 3)


@settings(deadline=None, max_examples=25)
@given(picture=PICTURES, factor=st.sampled_from([2, 4]))  # thirds are not exact in floats
def test_flipping_first_or_last_is_the_same(picture: Pixels, factor: int) -> None:
    assert np.array_equal(upscale(picture[::-1], factor), upscale(picture, factor)[::-1])
    assert np.array_equal(upscale(picture[:, ::-1], factor), upscale(picture, factor)[:, ::-1])


@settings(deadline=None, max_examples=25)
@given(level=st.integers(0, 255), factor=st.sampled_from([2, 3, 4]))
def test_a_flat_picture_stays_flat(level: int, factor: int) -> None:
    flat = np.full((9, 7, 3), level, np.uint8)
    assert (upscale(flat, factor) == level).all()
    assert (downscale(flat, factor) == level).all()


@settings(deadline=None)
@given(picture=PICTURES)
def test_crop_drops_less_than_the_factor_at_bottom_and_right(picture: Pixels) -> None:
    cropped = crop(picture, 4)
    height, width = cropped.shape[:2]
    assert height % 4 == width % 4 == 0
    assert 0 <= picture.shape[0] - height < 4
    assert 0 <= picture.shape[1] - width < 4
    assert np.array_equal(cropped, picture[:height, :width])
