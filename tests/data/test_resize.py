"""MATLAB's bicubic: equal to the published LR datasets and to its definition."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from esrjax.data.image_io import Pixels, read_image
from esrjax.data.resize import bicubic_downscale, bicubic_upscale, mod_crop

SIDES = st.integers(1, 20)
IMAGES = st.tuples(SIDES, SIDES).flatmap(lambda sides: arrays(np.uint8, (*sides, 3)))


@pytest.mark.parametrize("name", ["Set5", "Set14", "B100"])
def test_downscaling_equals_the_published_lr_images(reference: Path, name: str) -> None:
    for path in sorted((reference / "data" / name / "HR").glob("*.png")):
        lr = reference / "data" / name / "LR_bicubic_X4" / f"{path.stem}x4.png"
        assert np.array_equal(bicubic_downscale(read_image(path).pixels), read_image(lr).pixels), (
            path.name
        )


def exact_resize(row: list[int], factor: Fraction) -> list[int]:
    """Resize one row in exact rational arithmetic, tap by tap."""

    def kernel(x: Fraction) -> Fraction:
        x = abs(x)
        if x <= 1:
            return Fraction(3, 2) * x**3 - Fraction(5, 2) * x**2 + 1
        return -Fraction(1, 2) * x**3 + Fraction(5, 2) * x**2 - 4 * x + 2 if x <= 2 else Fraction(0)

    kernel_scale = min(factor, Fraction(1))
    resized: list[int] = []
    for i in range(-(-len(row) * factor.numerator // factor.denominator)):
        center = (i + Fraction(1, 2)) / factor - Fraction(1, 2)
        indices = range(-10 * factor.denominator, len(row) + 10 * factor.denominator)
        weights = {j: kernel((center - j) * kernel_scale) for j in indices}
        total = sum(w * row[min(max(j, 0), len(row) - 1)] for j, w in weights.items() if w)
        mean = total / sum(weights.values())
        resized.append(min(max(int((mean + Fraction(1, 2)) // 1), 0), 255))
    return resized


@pytest.mark.parametrize("factor", [Fraction(1, 4), Fraction(1, 2), Fraction(2), Fraction(4)])
@settings(deadline=None, max_examples=10)
@given(row=st.lists(st.integers(0, 255), min_size=1, max_size=12))
def test_both_axes_equal_exact_arithmetic(factor: Fraction, row: list[int]) -> None:
    pixels = np.array(row, np.uint8)[:, None, None]
    resize = bicubic_downscale if factor < 1 else bicubic_upscale
    vertical = resize(pixels, int(max(factor, 1 / factor)))
    assert vertical[:, 0, 0].tolist() == exact_resize(row, factor)
    horizontal = resize(pixels.swapaxes(0, 1), int(max(factor, 1 / factor)))
    assert horizontal[0, :, 0].tolist() == exact_resize(row, factor)


def test_height_is_resized_first_and_rounded_in_between() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    columns = noise[..., 0].T
    short = np.array([exact_resize(column.tolist(), Fraction(1, 4)) for column in columns]).T
    expected = np.array([exact_resize(row.tolist(), Fraction(1, 4)) for row in short])
    assert np.array_equal(bicubic_downscale(noise)[..., 0], expected)
    width_first = bicubic_downscale(noise.swapaxes(0, 1)).swapaxes(0, 1)[..., 0]
    assert not np.array_equal(width_first, expected)


@settings(deadline=None, max_examples=25)
@given(image=IMAGES, factor=st.sampled_from([2, 3, 4]))
def test_shapes(image: Pixels, factor: int) -> None:
    height, width = image.shape[:2]
    assert bicubic_upscale(image, factor).shape == (factor * height, factor * width, 3)
    assert bicubic_downscale(image, factor).shape == (-(-height // factor), -(-width // factor), 3)


@settings(deadline=None, max_examples=25)
@given(image=IMAGES, factor=st.sampled_from([2, 4]))  # thirds are not exact in floats
def test_upscaling_commutes_with_flips(image: Pixels, factor: int) -> None:
    assert np.array_equal(
        bicubic_upscale(image[::-1], factor), bicubic_upscale(image, factor)[::-1]
    )
    assert np.array_equal(
        bicubic_upscale(image[:, ::-1], factor), bicubic_upscale(image, factor)[:, ::-1]
    )


@settings(deadline=None, max_examples=25)
@given(level=st.integers(0, 255), factor=st.sampled_from([2, 3, 4]))
def test_constant_image_stays_constant(level: int, factor: int) -> None:
    constant = np.full((9, 7, 3), level, np.uint8)
    assert (bicubic_upscale(constant, factor) == level).all()
    assert (bicubic_downscale(constant, factor) == level).all()


@settings(deadline=None)
@given(image=IMAGES)
def test_mod_crop_removes_less_than_the_factor_at_bottom_and_right(image: Pixels) -> None:
    cropped = mod_crop(image, 4)
    height, width = cropped.shape[:2]
    assert height % 4 == width % 4 == 0
    assert 0 <= image.shape[0] - height < 4
    assert 0 <= image.shape[1] - width < 4
    assert np.array_equal(cropped, image[:height, :width])
