"""PSNR and SSIM: published figures, slow definitions, scikit-image, and properties."""

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

from esrjax.data.datasets import list_folder_pairs
from esrjax.data.image_io import Pixels
from esrjax.data.resize import bicubic_upscale
from esrjax.errors import IncomparableImages, InvalidOutput, NotFound
from esrjax.evaluation.metrics import (
    BASICSR_Y,
    NTIRE,
    MetricSpec,
    Y,
    all_specs,
    compute_all_specs,
    get_spec,
    psnr,
    ssim,
    to_uint8,
)

SPECS = all_specs()

IMAGES = arrays(np.uint8, (20, 21, 3))
MAIN_SPECS = pytest.mark.parametrize("spec", [NTIRE, Y, BASICSR_Y], ids=lambda spec: spec.name)


Levels = np.ndarray[Any, np.dtype[np.float64]]
ALL_SPECS = pytest.mark.parametrize("spec", SPECS.values(), ids=lambda spec: spec.name)


def bt601_limited(rgb: Levels) -> Levels:
    return rgb2ycbcr(rgb / 255)[..., :1]


def bt601_full(rgb: Levels) -> Levels:
    return (rgb @ [299, 587, 114])[..., None] / 1000


def superimage_luma(rgb: Levels) -> Levels:
    red, green, blue = np.moveaxis(rgb, -1, 0)
    return (16 + (64.738 * red + 129.057 * green + 25.064 * blue) / 256)[..., None]


# The channels that each spec compares, for PSNR and for SSIM.
CHANNELS: dict[str, Any] = {name: (lambda rgb: rgb, lambda rgb: rgb) for name in SPECS} | {
    "y": (lambda rgb: np.rint(bt601_limited(rgb)), lambda rgb: np.rint(bt601_limited(rgb))),
    "basicsr_y": (bt601_limited, bt601_limited),
    "pyiqa_y": (bt601_full, lambda rgb: np.rint(bt601_full(rgb))),
    "pyiqa_y_border0": (bt601_full, lambda rgb: np.rint(bt601_full(rgb))),
    "superimage_y": (superimage_luma, superimage_luma),
}
OUTPUT_ROUNDING: dict[str, Any] = {  # where it is not np.rint
    "superimage_y": lambda levels: levels,
    "rgb_unrounded": lambda levels: levels,
    "rgb_truncated": np.floor,
}


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_bicubic_has_the_published_scores(reference: Path, name: str) -> None:
    published = json.loads((reference / "protocol/bicubic_psnr.json").read_text())["sets"][name]
    for pair in list_folder_pairs(reference / "data" / name):
        lr, hr = pair.load()
        sr, expected = bicubic_upscale(lr), published["images"][pair.name]
        assert psnr(sr, hr, NTIRE) == pytest.approx(expected["psnr_rgb"], abs=1e-6)
        assert ssim(sr, hr, NTIRE) == pytest.approx(expected["ssim_rgb"], abs=1e-6)
        assert psnr(sr, hr, BASICSR_Y) == pytest.approx(expected["psnr_y_float"], abs=1e-6)
        # Luma has ties in rounding, which another BLAS may resolve differently.
        assert psnr(sr, hr, Y) == pytest.approx(expected["psnr_y"], abs=1e-4)
        assert ssim(sr, hr, Y) == pytest.approx(expected["ssim_y"], abs=1e-5)


def slow_ssim(sr: Pixels, hr: Pixels, spec: MetricSpec) -> float:
    """SSIM window by window, with two-dimensional weights and variances about the mean."""
    interior = slice(spec.crop_border, -spec.crop_border or None)
    select_channels = CHANNELS[spec.name][1]
    images = [select_channels(image[interior, interior].astype(np.float64)) for image in (sr, hr)]
    row, column = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(row**2 + column**2) / (2 * 1.5**2))
    weights = (weights / weights.sum())[..., None]
    values: list[float] = []
    height, width = images[0].shape[:2]
    for top in range(height - 10):
        for left in range(width - 10):
            x, y = (image[top : top + 11, left : left + 11] for image in images)
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


@ALL_SPECS
def test_ssim_equals_its_slow_definition(spec: MetricSpec) -> None:
    hr = bicubic_upscale(noise(9, 8, 3))
    sr = (hr.astype(int) * 3 // 4 + noise(36, 32, 3, seed=1) // 5).astype(np.uint8)
    assert ssim(sr, hr, spec) == pytest.approx(slow_ssim(sr, hr, spec), abs=1e-10)
    assert 0.3 < ssim(sr, hr, spec) < 0.95


@ALL_SPECS
def test_metrics_equal_scikit_image(spec: MetricSpec) -> None:
    hr, rng = bicubic_upscale(noise(10, 12, 3, seed=2)), np.random.default_rng(3)
    sr = np.clip(hr / 255 + rng.normal(0, 0.08, hr.shape), -0.1, 1.1).astype(np.float32)
    levels = OUTPUT_ROUNDING.get(spec.name, np.rint)(np.clip(sr.astype(np.float64), 0, 1) * 255)
    interior = slice(spec.crop_border, -spec.crop_border or None)
    images = [image[interior, interior].astype(np.float64) for image in (levels, hr)]
    for_psnr, for_ssim = (
        [select_channels(image) for image in images] for select_channels in CHANNELS[spec.name]
    )
    mse = mean_squared_error(*for_psnr) / 255**2 + (1e-8 if "pyiqa" in spec.name else 0)
    assert psnr(sr, hr, spec) == pytest.approx(-10 * math.log10(mse), abs=1e-5)
    expected = structural_similarity(
        *for_ssim,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=-1,
    )
    unclipped = replace(spec, clip_negative_ssim=False)  # as scikit-image does
    assert ssim(sr, hr, unclipped) == pytest.approx(expected, abs=1e-6)


def bicubic(lr: Pixels) -> Levels:
    """MATLAB's bicubic x4 without rounding, symmetric padding: (h, w, 3) -> (4h, 4w, 3)."""

    def upscale_height(levels: Levels) -> Levels:
        side = len(levels)
        center = (np.arange(4 * side) + 0.5) / 4 - 0.5
        row = np.floor(center).astype(int)[:, None] + np.arange(-1, 3)
        x = np.abs(center[:, None] - row)
        weights = np.where(
            x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        )
        reflected = np.where(row < 0, -1 - row, np.where(row >= side, 2 * side - 1 - row, row))
        return np.einsum("ot,otwc->owc", weights, levels[reflected])

    tall = upscale_height(lr.astype(np.float64))
    return upscale_height(tall.swapaxes(0, 1)).swapaxes(0, 1)


# PSNR in dB of Set5 x4, MATLAB's bicubic without rounding between its passes, as the programs
# behind the specs print it.
PRINTED_PSNR = {
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


def test_every_spec_gives_the_psnr_that_its_program_prints(reference: Path) -> None:
    psnrs: dict[str, list[float]] = {name: [] for name in PRINTED_PSNR}
    for pair in list_folder_pairs(reference / "data/Set5"):
        lr, hr = pair.load()
        for name, values in psnrs.items():
            values.append(psnr(bicubic(lr) / 255, hr, SPECS[name]))
    means = {name: round(sum(values) / 5, 3) for name, values in psnrs.items()}
    assert means == PRINTED_PSNR and set(PRINTED_PSNR) == set(SPECS)


def test_pyiqa_limits_psnr_and_clips_negative_ssim() -> None:
    hr = noise(32, 32, 3)
    assert psnr(hr, hr, SPECS["pyiqa_y"]) == pytest.approx(80)
    assert ssim(255 - hr, hr, Y) < 0 <= ssim(255 - hr, hr, SPECS["pyiqa_y"])


def test_floats_are_rounded_as_the_spec_requires() -> None:
    hr = np.full((12, 12, 3), 100, np.uint8)
    sr = np.full((12, 12, 3), 100.75 / 255, np.float32)

    def error_in_levels(name: str) -> float:
        return 255 / 10 ** (psnr(sr, hr, SPECS[name]) / 20)

    assert error_in_levels("ntire") == pytest.approx(1)
    assert psnr(sr, hr, SPECS["rgb_truncated"]) == math.inf
    assert error_in_levels("rgb_unrounded") == pytest.approx(0.75, abs=1e-4)
    sr[0, 0] = np.nan  # within the border
    with pytest.raises(InvalidOutput):
        psnr(sr, hr, NTIRE)


def test_metrics_are_none_where_the_image_is_too_small_for_a_spec() -> None:
    sr, hr = noise(25, 40, 3), noise(25, 40, 3, seed=1)
    values_of = {values.spec.name: values for values in compute_all_specs(sr, hr)}
    assert list(values_of) == list(SPECS)
    assert (values_of["y"].psnr, values_of["y"].ssim) == (psnr(sr, hr, Y), ssim(sr, hr, Y))
    border10 = values_of["rgb_border10"]
    assert border10.psnr == psnr(sr, hr, SPECS["rgb_border10"]) and border10.ssim is None
    assert values_of["rgb_border0"].ssim is not None


def test_psnr_averages_squared_errors_over_all_channels() -> None:
    hr = noise(20, 20, 3) // 2
    sr = hr.copy()
    sr[4:16, 4:16, 0] += 10  # a third of all values: MSE 100/3
    assert psnr(sr, hr, NTIRE) == pytest.approx(10 * math.log10(255**2 * 3 / 100), abs=1e-12)


def test_luma_ranges_from_16_to_235_and_is_rounded() -> None:
    black, white = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8)
    assert psnr(black, white, Y) == pytest.approx(20 * math.log10(255 / 219), abs=1e-12)
    blue = black.copy()
    blue[..., 2] = 1  # 0.098 levels of luma
    assert psnr(black, blue, Y) == math.inf
    expected = 20 * math.log10(255 / (24.966 / 255))
    assert psnr(black, blue, BASICSR_Y) == pytest.approx(expected, abs=1e-9)


@MAIN_SPECS
def test_border_is_ignored(spec: MetricSpec) -> None:
    hr = noise(24, 24, 3)
    sr = hr.copy()
    sr[:4] = sr[-4:] = sr[:, :4] = sr[:, -4:] = 0
    assert psnr(sr, hr, spec) == math.inf
    assert ssim(sr, hr, spec) == pytest.approx(1, abs=1e-12)
    for row, column in ((4, 12), (19, 12), (12, 4), (12, 19)):
        changed = hr.copy()
        changed[row, column] ^= 255
        assert psnr(changed, hr, spec) < 80
        assert psnr(changed, hr, replace(spec, crop_border=5)) == math.inf


@MAIN_SPECS
@settings(deadline=None, max_examples=20)
@given(sr=IMAGES, hr=IMAGES)
def test_metrics_are_symmetric_and_bounded(spec: MetricSpec, sr: Pixels, hr: Pixels) -> None:
    assert psnr(sr, hr, spec) == psnr(hr, sr, spec) >= 0
    assert ssim(sr, hr, spec) == pytest.approx(ssim(hr, sr, spec), abs=1e-12)
    assert -1 <= ssim(sr, hr, spec) <= 1 + 1e-12
    assert psnr(hr, hr, spec) == math.inf
    assert ssim(hr, hr, spec) == pytest.approx(1, abs=1e-12)


def test_to_uint8_clips_and_rounds_half_to_even() -> None:
    levels = np.array([-0.1, 0, 0.5, 1.5, 2.5, 254.5, 255, 256, np.inf, -np.inf], np.float32)
    assert to_uint8(levels, 255).tolist() == [0, 0, 0, 2, 2, 254, 255, 255, 255, 0]
    assert to_uint8([0.5, 1.0, 2.0], 1).tolist() == [128, 255, 255]


@settings(deadline=None)
@given(pixels=IMAGES, data_range=st.sampled_from([1.0, 255.0]))
def test_to_uint8_inverts_the_conversion_to_network_input(
    pixels: Pixels, data_range: float
) -> None:
    assert np.array_equal(to_uint8(pixels / np.float32(255 / data_range), data_range), pixels)


def test_to_uint8_rejects_nan() -> None:
    with pytest.raises(InvalidOutput) as caught:
        to_uint8(np.array([0.5, np.nan, np.nan]), 1)
    assert "2 of 3" in caught.value.problem and caught.value.remedy


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_of_different_sizes_are_rejected(metric: Any) -> None:
    with pytest.raises(IncomparableImages) as caught:
        metric(noise(20, 24, 3), noise(24, 20, 3), NTIRE)
    assert "20x24" in caught.value.problem and "24x20" in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("image", "dtype_and_shape"),
    [
        (noise(20, 20, 3) / 255, "float64 (20, 20, 3)"),
        (noise(20, 20), "uint8 (20, 20)"),
        (noise(20, 20, 4), "uint8 (20, 20, 4)"),
    ],
)
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_hr_that_is_not_uint8_rgb_is_rejected(
    metric: Any, image: Any, dtype_and_shape: str
) -> None:
    with pytest.raises(IncomparableImages) as caught:
        metric(noise(20, 20, 3), image, Y)
    assert dtype_and_shape in caught.value.problem and caught.value.remedy


def test_image_too_small_for_the_border_or_the_window_is_rejected() -> None:
    assert psnr(noise(9, 9, 3), noise(9, 9, 3), NTIRE) == math.inf
    assert ssim(noise(19, 19, 3), noise(19, 19, 3), NTIRE) == pytest.approx(1)
    for metric, side in ((psnr, 8), (ssim, 18)):
        with pytest.raises(IncomparableImages) as caught:
            metric(noise(40, side, 3), noise(40, side, 3), NTIRE)
        assert f"40x{side}" in caught.value.problem and "'ntire'" in caught.value.problem
        assert caught.value.remedy


# --- Metric specs: lookup by name, distinct definitions, summaries ---


def test_specs_are_found_by_name() -> None:
    assert {name: get_spec(name) for name in SPECS} == SPECS
    assert (get_spec("ntire"), get_spec("y")) == (NTIRE, Y)
    with pytest.raises(NotFound) as caught:
        get_spec("basic_y")
    assert "'basic_y'" in caught.value.problem and all(name in caught.value.rule for name in SPECS)
    assert "'basicsr_y'" in caught.value.remedy
    with pytest.raises(NotFound, match="'lpips'"):
        get_spec("lpips")


def test_definitions_and_summaries_are_distinct() -> None:
    definitions = [replace(spec, name="", used_by="") for spec in SPECS.values()]
    assert all(definitions.count(definition) == 1 for definition in definitions)
    assert len({spec.summary for spec in SPECS.values()}) == len(SPECS)


@pytest.mark.parametrize(
    ("name", "clauses"),
    [
        ("ntire", ["RGB", "output rounded to 8 bits", "border 4"]),
        ("y", ["BT.601 luma (16 to 235), rounded;", "output rounded to 8 bits", "border 4"]),
        ("rgb_truncated", ["RGB", "output truncated to 8 bits", "border 4"]),
        (
            "pyiqa_y_border0",
            [
                "BT.601 luma (0 to 255), rounded for SSIM",
                "output rounded to 8 bits",
                "border 0",
                "MSE + 1e-08",
                "negative SSIM clipped",
            ],
        ),
    ],
)
def test_summary_follows_from_the_fields(name: str, clauses: list[str]) -> None:
    assert all(clause in SPECS[name].summary for clause in clauses)
