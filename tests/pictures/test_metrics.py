"""PSNR and SSIM: against published numbers, against slow definitions, and their laws."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.color import rgb2ycbcr
from skimage.metrics import mean_squared_error, structural_similarity

from esrjax.pictures.files import Pixels
from esrjax.pictures.metrics import Incomparable, NotFinite, psnr, quantise, readings, ssim
from esrjax.pictures.resize import upscale
from esrjax.pictures.sets import pairs
from esrjax.pictures.specs import BASICSR_Y, NTIRE, SPECS, Spec, Y

PICTURES = arrays(np.uint8, (20, 21, 3))
BOTH = pytest.mark.parametrize("spec", [NTIRE, Y, BASICSR_Y], ids=lambda spec: spec.name)


Levels = np.ndarray[Any, np.dtype[np.float64]]
ALL = pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)


def studio(rgb: Levels) -> Levels:
    return rgb2ycbcr(rgb / 255)[..., :1]


def full(rgb: Levels) -> Levels:
    return (rgb @ [299, 587, 114])[..., None] / 1000


def slipped(rgb: Levels) -> Levels:
    red, green, blue = np.moveaxis(rgb, -1, 0)
    return (16 + (64.738 * red + 129.057 * green + 25.064 * blue) / 256)[..., None]


# what each spec sees of levels, for PSNR and for SSIM
SEEN: dict[str, Any] = {name: (lambda rgb: rgb, lambda rgb: rgb) for name in SPECS} | {
    "y": (lambda rgb: np.rint(studio(rgb)), lambda rgb: np.rint(studio(rgb))),
    "basicsr_y": (studio, studio),
    "pyiqa_y": (full, lambda rgb: np.rint(full(rgb))),
    "pyiqa_y_border0": (full, lambda rgb: np.rint(full(rgb))),
    "superimage_y": (slipped, slipped),
}
LEVELS: dict[str, Any] = {  # of outputs, where they are not rounded
    "superimage_y": lambda levels: levels,
    "rgb_unrounded": lambda levels: levels,
    "rgb_truncated": np.floor,
}


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_bicubic_scores_what_it_is_known_to_score(reference: Path, name: str) -> None:
    known = json.loads((reference / "protocol/bicubic_psnr.json").read_text())["sets"][name]
    for pair in pairs(reference / "data" / name):
        lr, hr = pair.load()
        sr, expected = upscale(lr), known["images"][pair.name]
        assert psnr(sr, hr, NTIRE) == pytest.approx(expected["psnr_rgb"], abs=1e-6)
        assert ssim(sr, hr, NTIRE) == pytest.approx(expected["ssim_rgb"], abs=1e-6)
        assert psnr(sr, hr, BASICSR_Y) == pytest.approx(expected["psnr_y_float"], abs=1e-6)
        # Rounding luma has ties, which another BLAS may break otherwise.
        assert psnr(sr, hr, Y) == pytest.approx(expected["psnr_y"], abs=1e-4)
        assert ssim(sr, hr, Y) == pytest.approx(expected["ssim_y"], abs=1e-5)


def slow_ssim(sr: Pixels, hr: Pixels, spec: Spec) -> float:
    """Window by window, with two-dimensional weights and variances about the mean."""
    inner = slice(spec.border, -spec.border or None)
    seen = [SEEN[spec.name][1](pixels[inner, inner].astype(np.float64)) for pixels in (sr, hr)]
    row, column = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(row**2 + column**2) / (2 * 1.5**2))
    weights = (weights / weights.sum())[..., None]
    values: list[float] = []
    height, width = seen[0].shape[:2]
    for top in range(height - 10):
        for left in range(width - 10):
            x, y = (plane[top : top + 11, left : left + 11] for plane in seen)
            mean_x, mean_y = (weights * x).sum((0, 1)), (weights * y).sum((0, 1))
            var_x, var_y = (
                (weights * (v - mean) ** 2).sum((0, 1)) for v, mean in ((x, mean_x), (y, mean_y))
            )
            covariance = (weights * (x - mean_x) * (y - mean_y)).sum((0, 1))
            luminance = (2 * mean_x * mean_y + 2.55**2) / (mean_x**2 + mean_y**2 + 2.55**2)
            structure = (2 * covariance + 7.65**2) / (var_x + var_y + 7.65**2)
            if "pyiqa" in spec.name:
                structure = np.maximum(structure, 0)
            values += list(luminance * structure)
    return sum(values) / len(values)


@ALL
def test_ssim_is_its_slow_definition(spec: Spec) -> None:
    hr = upscale(noise(9, 8, 3))
    sr = (hr.astype(int) * 3 // 4 + noise(36, 32, 3, seed=1) // 5).astype(np.uint8)
    assert ssim(sr, hr, spec) == pytest.approx(slow_ssim(sr, hr, spec), abs=1e-10)
    assert 0.3 < ssim(sr, hr, spec) < 0.95


@ALL
def test_both_metrics_are_what_scikit_image_finds(spec: Spec) -> None:
    hr, draw = upscale(noise(10, 12, 3, seed=2)), np.random.default_rng(3)
    sr = np.clip(hr / 255 + draw.normal(0, 0.08, hr.shape), -0.1, 1.1).astype(np.float32)
    levels = LEVELS.get(spec.name, np.rint)(np.clip(sr.astype(np.float64), 0, 1) * 255)
    inner = slice(spec.border, -spec.border or None)
    pictures = [each[inner, inner].astype(np.float64) for each in (levels, hr)]
    for_psnr, for_ssim = ([see(each) for each in pictures] for see in SEEN[spec.name])
    error = mean_squared_error(*for_psnr) / 255**2 + (1e-8 if "pyiqa" in spec.name else 0)
    assert psnr(sr, hr, spec) == pytest.approx(-10 * math.log10(error), abs=1e-5)
    found = structural_similarity(
        *for_ssim,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=-1,
    )
    kept = replace(spec, anticorrelated="negative")  # as scikit-image does
    assert ssim(sr, hr, kept) == pytest.approx(found, abs=1e-6)


def bicubic(lr: Pixels) -> Levels:
    """MATLAB's bicubic x4 without rounding, the edge mirrored: (h, w, 3) -> (4h, 4w, 3)."""

    def taller(levels: Levels) -> Levels:
        side = len(levels)
        centre = (np.arange(4 * side) + 0.5) / 4 - 0.5
        row = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
        x = np.abs(centre[:, None] - row)
        weights = np.where(
            x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        )
        mirrored = np.where(row < 0, -1 - row, np.where(row >= side, 2 * side - 1 - row, row))
        return np.einsum("ot,otwc->owc", weights, levels[mirrored])

    return taller(taller(lr.astype(np.float64)).swapaxes(0, 1)).swapaxes(0, 1)


# Set5 x4, MATLAB's bicubic without rounding between its passes: what programs print of it, dB
PRINTED = {
    "ntire": 26.696,
    "rgb_border0": 26.699,
    "rgb_border10": 26.718,
    "rgb_truncated": 26.686,
    "rgb_unrounded": 26.699,
    "basicsr_y": 28.432,
    "y": 28.419,
    "pyiqa_y": 27.110,
    "pyiqa_y_border0": 27.114,
    "superimage_y": 28.475,
}


def test_every_convention_gives_its_own_figure_of_the_same_pixels(reference: Path) -> None:
    found: dict[str, list[float]] = {name: [] for name in PRINTED}
    for pair in pairs(reference / "data/Set5"):
        lr, hr = pair.load()
        for name, values in found.items():
            values.append(psnr(bicubic(lr) / 255, hr, SPECS[name]))
    means = {name: round(sum(values) / 5, 3) for name, values in found.items()}
    assert means == PRINTED and set(PRINTED) == set(SPECS)


def test_pyiqa_knows_no_perfect_picture_and_no_negative_similarity() -> None:
    hr = noise(32, 32, 3)
    assert psnr(hr, hr, SPECS["pyiqa_y"]) == pytest.approx(80)
    assert ssim(255 - hr, hr, Y) < 0 <= ssim(255 - hr, hr, SPECS["pyiqa_y"])


def test_floats_become_levels_as_the_spec_says() -> None:
    hr = np.full((12, 12, 3), 100, np.uint8)
    sr = np.full((12, 12, 3), 100.75 / 255, np.float32)

    def off(name: str) -> float:
        return 255 / 10 ** (psnr(sr, hr, SPECS[name]) / 20)

    assert off("ntire") == pytest.approx(1)
    assert psnr(sr, hr, SPECS["rgb_truncated"]) == math.inf
    assert off("rgb_unrounded") == pytest.approx(0.75, abs=1e-4)
    sr[0, 0] = np.nan  # within the border
    with pytest.raises(NotFinite):
        psnr(sr, hr, NTIRE)


def test_readings_are_both_metrics_under_every_spec_that_the_size_allows() -> None:
    sr, hr = noise(25, 40, 3), noise(25, 40, 3, seed=1)
    found = {reading.spec.name: reading for reading in readings(sr, hr)}
    assert list(found) == list(SPECS)
    assert (found["y"].psnr, found["y"].ssim) == (psnr(sr, hr, Y), ssim(sr, hr, Y))
    wide = found["rgb_border10"]
    assert wide.psnr == psnr(sr, hr, SPECS["rgb_border10"]) and wide.ssim is None
    assert found["rgb_border0"].ssim is not None


def test_psnr_is_one_mean_over_all_channels() -> None:
    hr = noise(20, 20, 3) // 2
    sr = hr.copy()
    sr[4:16, 4:16, 0] += 10  # a third of all values: MSE 100/3
    assert psnr(sr, hr, NTIRE) == pytest.approx(10 * math.log10(255**2 * 3 / 100), abs=1e-12)


def test_luma_goes_from_16_to_235_and_is_rounded() -> None:
    black, white = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8)
    assert psnr(black, white, Y) == pytest.approx(20 * math.log10(255 / 219), abs=1e-12)
    blue = black.copy()
    blue[..., 2] = 1  # 0.098 levels of luma
    assert psnr(black, blue, Y) == math.inf
    expected = 20 * math.log10(255 / (24.966 / 255))
    assert psnr(black, blue, BASICSR_Y) == pytest.approx(expected, abs=1e-9)


@BOTH
def test_the_border_is_not_seen(spec: Spec) -> None:
    hr = noise(24, 24, 3)
    sr = hr.copy()
    sr[:4] = sr[-4:] = sr[:, :4] = sr[:, -4:] = 0
    assert psnr(sr, hr, spec) == math.inf
    assert ssim(sr, hr, spec) == pytest.approx(1, abs=1e-12)
    for row, column in ((4, 12), (19, 12), (12, 4), (12, 19)):
        seen = hr.copy()
        seen[row, column] ^= 255
        assert psnr(seen, hr, spec) < 80
        assert psnr(seen, hr, replace(spec, border=5)) == math.inf


@BOTH
@settings(deadline=None, max_examples=20)
@given(sr=PICTURES, hr=PICTURES)
def test_both_metrics_are_symmetric_and_bounded(spec: Spec, sr: Pixels, hr: Pixels) -> None:
    assert psnr(sr, hr, spec) == psnr(hr, sr, spec) >= 0
    assert ssim(sr, hr, spec) == pytest.approx(ssim(hr, sr, spec), abs=1e-12)
    assert -1 <= ssim(sr, hr, spec) <= 1 + 1e-12
    assert psnr(hr, hr, spec) == math.inf
    assert ssim(hr, hr, spec) == pytest.approx(1, abs=1e-12)


def test_quantise_clips_and_rounds_half_to_even() -> None:
    levels = np.array([-0.1, 0, 0.5, 1.5, 2.5, 254.5, 255, 256, np.inf, -np.inf], np.float32)
    assert quantise(levels, 255).tolist() == [0, 0, 0, 2, 2, 254, 255, 255, 255, 0]
    assert quantise([0.5, 1.0, 2.0], 1).tolist() == [128, 255, 255]


@settings(deadline=None)
@given(pixels=PICTURES, data_range=st.sampled_from([1.0, 255.0]))
def test_quantise_undoes_the_way_into_a_network(pixels: Pixels, data_range: float) -> None:
    assert np.array_equal(quantise(pixels / np.float32(255 / data_range), data_range), pixels)


def test_quantise_refuses_what_is_no_number() -> None:
    with pytest.raises(NotFinite) as caught:
        quantise(np.array([0.5, np.nan, np.nan]), 1)
    assert str(caught.value) == (
        "2 of 3 output values are not numbers\n"
        "  rule:   a picture is made of numbers\n"
        "  remedy: look for a division by zero, or for weights that diverged"
    )


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_pictures_of_two_sizes_are_refused(metric: Any) -> None:
    with pytest.raises(Incomparable) as caught:
        metric(noise(20, 24, 3), noise(24, 20, 3), NTIRE)
    assert str(caught.value) == (
        "the SR picture is 20x24, the HR picture 24x20 (height x width)\n"
        "  rule:   metrics compare pictures of one size; nothing is cropped in silence\n"
        "  remedy: check the scale, and that the HR picture is cropped to a multiple of it"
    )


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (noise(20, 20, 3) / 255, "a picture is float64 (20, 20, 3)"),
        (noise(20, 20), "a picture is uint8 (20, 20)"),
        (noise(20, 20, 4), "a picture is uint8 (20, 20, 4)"),
    ],
)
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_only_rgb_bytes_are_compared(metric: Any, picture: Any, said: str) -> None:
    with pytest.raises(Incomparable) as caught:
        metric(noise(20, 20, 3), picture, Y)
    assert str(caught.value) == (
        f"{said}\n"
        "  rule:   metrics compare (h, w, 3): uint8, or an output of floats, white at 1\n"
        "  remedy: turn a network's output into bytes with quantise"
    )


def test_a_pixel_or_a_window_must_lie_between_the_borders() -> None:
    assert psnr(noise(9, 9, 3), noise(9, 9, 3), NTIRE) == math.inf
    assert ssim(noise(19, 19, 3), noise(19, 19, 3), NTIRE) == pytest.approx(1)
    for metric, side in ((psnr, 8), (ssim, 18)):
        with pytest.raises(Incomparable) as caught:
            metric(noise(40, side, 3), noise(40, side, 3), NTIRE)
        assert str(caught.value) == (
            f"a picture of 40x{side} is too small for the metric spec 'ntire'\n"
            "  rule:   a border of 4 pixels is dropped; SSIM needs 11 within it\n"
            "  remedy: choose larger pictures"
        )
