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

from esrjax.pictures.files import Pixels
from esrjax.pictures.metrics import (
    NTIRE,
    SPECS,
    Incomparable,
    NotFinite,
    Spec,
    UnknownSpec,
    Y,
    named,
    psnr,
    quantise,
    ssim,
)
from esrjax.pictures.resize import upscale
from esrjax.pictures.sets import pairs

FLOAT_Y = replace(Y, name="unrounded y", quantiser="none")
PICTURES = arrays(np.uint8, (20, 21, 3))
BOTH = pytest.mark.parametrize("spec", [NTIRE, Y, FLOAT_Y], ids=lambda spec: spec.name)


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
        assert psnr(sr, hr, FLOAT_Y) == pytest.approx(expected["psnr_y_float"], abs=1e-6)
        # Rounding luma has ties, which another BLAS may break otherwise.
        assert psnr(sr, hr, Y) == pytest.approx(expected["psnr_y"], abs=1e-4)
        assert ssim(sr, hr, Y) == pytest.approx(expected["ssim_y"], abs=1e-5)


def slow_luma(pixels: Pixels) -> np.ndarray[Any, np.dtype[np.float64]]:
    red, green, blue = np.moveaxis(pixels.astype(np.float64), -1, 0)
    return (16 + (65.481 * red + 128.553 * green + 24.966 * blue) / 255)[..., None]


def slow_ssim(sr: Pixels, hr: Pixels, spec: Spec) -> float:
    """Window by window, with two-dimensional weights and variances about the mean."""
    inner = slice(spec.border, -spec.border)
    seen = [pixels[inner, inner].astype(np.float64) for pixels in (sr, hr)]
    if spec.colour == "y":
        seen = [slow_luma(pixels[inner, inner]) for pixels in (sr, hr)]
    if spec.colour == "y" and spec.quantiser == "uint8":
        seen = [np.rint(luma) for luma in seen]
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
            values += list(luminance * (2 * covariance + 7.65**2) / (var_x + var_y + 7.65**2))
    return sum(values) / len(values)


@BOTH
def test_ssim_is_its_slow_definition(spec: Spec) -> None:
    hr = upscale(noise(8, 7, 3))
    sr = (hr.astype(int) * 3 // 4 + noise(32, 28, 3, seed=1) // 5).astype(np.uint8)
    assert ssim(sr, hr, spec) == pytest.approx(slow_ssim(sr, hr, spec), abs=1e-10)
    assert 0.3 < ssim(sr, hr, spec) < 0.95


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
    assert psnr(black, blue, FLOAT_Y) == pytest.approx(expected, abs=1e-9)


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


def test_specs_are_found_by_name() -> None:
    assert {name: named(name) for name in SPECS} == {"ntire": NTIRE, "y": Y}
    with pytest.raises(UnknownSpec) as caught:
        named("NTIRE26")
    assert str(caught.value) == (
        "there is no metric spec 'NTIRE26'\n"
        "  rule:   the specs are ntire, y\n"
        "  remedy: did you mean 'ntire'?"
    )
    with pytest.raises(UnknownSpec, match="remedy: choose one of these"):
        named("lpips")


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
        "  rule:   metrics compare uint8 (h, w, 3)\n"
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
