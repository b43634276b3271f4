"""PSNR and SSIM, and metric specs: their named conventions, each defined completely."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from esrjax import registry
from esrjax.data.image_arrays import as_array
from esrjax.data.image_io import Pixels
from esrjax.errors import IncomparableImages, InvalidOutput, PluginError, log_note

Float64Array = NDArray[np.float64]
SRImage = Pixels | NDArray[np.floating]  # (h, w, 3): uint8, or floats in [0, 1]
Metric = Literal["psnr", "ssim"]
MAX_FLOAT_MEAN = 1.5  # of floats in [0, 1]; more are levels of 0 to 255


@dataclass(frozen=True)
class Luma:
    """A luma channel: `dot(weights, RGB) / divisor + offset`, for levels in [0, 255].

    Attributes:
        name: What a summary calls it.
        weights: Of red, green and blue.
        divisor: The sum is divided by it.
        offset: The level of black.
    """

    name: str
    weights: tuple[float, float, float]
    divisor: int = 1
    offset: int = 0


# MATLAB's rgb2ycbcr: ITU-R BT.601, limited range, levels 16 to 235. What papers report as "Y".
BT601_LIMITED = Luma("BT.601 luma (16 to 235)", (65.481, 128.553, 24.966), divisor=255, offset=16)
# The Y of YIQ: the same weights over the full range, levels 0 to 255.
BT601_FULL = Luma("BT.601 luma (0 to 255)", (299, 587, 114), divisor=1000)
# super-image has 64.738 for red; BT.601 in 256ths is 65.738, 129.057, 25.064.
SUPERIMAGE_LUMA = Luma(
    "luma with 64.738 for red", (64.738, 129.057, 25.064), divisor=256, offset=16
)


@dataclass(frozen=True)
class MetricSpec:
    """Everything that must be fixed before PSNR and SSIM of two sources can be compared.

    Attributes:
        name: The name in commands, rules and results.
        used_by: The programs and papers that measure so.
        version: Increased when the definition behind a name changes.
        luma: The single channel that is compared; None compares RGB, in one mean.
        round_luma_for: The metrics for which luma is rounded to whole levels first.
        output_rounding: How the float output of a network becomes levels in [0, 255] ("none" leaves
            it unrounded). A uint8 image is compared as it is.
        crop_border: Pixels that are ignored at each side at x4 (see `at_scale`).
        window_size: Side of SSIM's Gaussian window, pixels.
        sigma: Standard deviation of that Gaussian, pixels.
        peak: The level of white (MAX in the definition of PSNR, L in that of SSIM).
        mse_epsilon: Added to the mean squared error of values in [0, 1], against a division by 0;
            1e-8 limits PSNR to 80 dB.
        clip_negative_ssim: Whether negative values of the SSIM map are set to 0.
    """

    name: str
    used_by: str
    version: int = 1
    luma: Luma | None = None
    round_luma_for: tuple[Metric, ...] = ()
    output_rounding: Literal["round", "truncate", "none"] = "round"
    crop_border: int = 4
    window_size: int = 11
    sigma: float = 1.5
    peak: int = 255
    mse_epsilon: float = 0.0
    clip_negative_ssim: bool = False

    def at_scale(self, scale: int) -> "MetricSpec":
        """Return the spec for HR images of another scale.

        Programs that crop a border crop as many pixels as the scale, EDSR's 6 + scale. A border of
        less than 4 pixels does not contain the scale, and stays.
        """
        if self.crop_border < 4:
            return self
        return replace(self, crop_border=self.crop_border - 4 + scale)

    @property
    def needs_float_output(self) -> bool:
        """Whether it needs the output of a network before rounding, as floats in [0, 1]."""
        return self.output_rounding != "round"

    @property
    def summary(self) -> str:
        """The conventions in words, derived from the fields."""
        clauses = [
            self.luma.name + _LUMA_ROUNDING[self.round_luma_for] if self.luma else _RGB,
            _OUTPUT_ROUNDING[self.output_rounding][0],
            f"border {self.crop_border}",
            f"MSE + {self.mse_epsilon:g}" if self.mse_epsilon else "",
            "negative SSIM clipped" if self.clip_negative_ssim else "",
        ]
        return "; ".join(filter(None, clauses))


_RGB = "RGB, one mean over all channels"
_LUMA_ROUNDING: dict[tuple[Metric, ...], str] = {
    (): ", not rounded",
    ("ssim",): ", rounded for SSIM",
    ("psnr", "ssim"): ", rounded",
}
# Output rounding -> the clause of a summary, and the function.
_OUTPUT_ROUNDING: dict[str, tuple[str, Callable[..., Any]]] = {
    "round": ("output rounded to 8 bits", np.rint),
    "truncate": ("output truncated to 8 bits", np.floor),
    "none": ("output clipped, not rounded", np.asarray),
}

NTIRE = MetricSpec("ntire", "the NTIRE challenge on efficient SR")
Y = MetricSpec("y", "papers; KAIR", luma=BT601_LIMITED, round_luma_for=("psnr", "ssim"))
BASICSR_Y = MetricSpec("basicsr_y", "BasicSR, test_y_channel", luma=BT601_LIMITED)
PYIQA_Y = MetricSpec(
    "pyiqa_y",
    "pyiqa, psnry and ssim, crop_border=4",
    luma=BT601_FULL,
    round_luma_for=("ssim",),
    mse_epsilon=1e-8,
    clip_negative_ssim=True,
)
SUPERIMAGE_Y = MetricSpec(
    "superimage_y", "super-image", luma=SUPERIMAGE_LUMA, output_rounding="none"
)

PYIQA_Y_BORDER0 = replace(
    PYIQA_Y, name="pyiqa_y_border0", used_by="pyiqa by default", crop_border=0
)
RGB_BORDER0 = MetricSpec("rgb_border0", "code that crops no border", crop_border=0)
RGB_BORDER10 = MetricSpec("rgb_border10", "code that crops 6 + scale", crop_border=10)
RGB_TRUNCATED = MetricSpec(
    "rgb_truncated", "code that casts to uint8 without rounding", output_rounding="truncate"
)
RGB_UNROUNDED = MetricSpec(
    "rgb_unrounded", "losses; metrics of float tensors", output_rounding="none"
)


def get_spec(name: str) -> MetricSpec:
    """Return the metric spec of a name, an entry point of the group `esrjax.metrics`.

    Raises:
        NotFound: If there is none.
        PluginError: If it cannot be loaded, or has another name, which results would record.
    """
    spec = registry.get_component(registry.METRIC_GROUP, name, "metric spec", MetricSpec)
    if spec.name == name:
        return spec
    raise PluginError(
        f"Metric spec {name!r} calls itself {spec.name!r}",
        rule="results record MetricSpec.name, by which tables tell metrics apart",
        location=f"the entry point {name!r} of the group {registry.METRIC_GROUP!r}",
        remedy="give both the same name",
    )


def all_specs() -> dict[str, MetricSpec]:
    """Return all registered metric specs by name, that of the challenge first.

    One that cannot be loaded is left out, with a note.
    """
    names = sorted(registry.component_names(registry.METRIC_GROUP), key=lambda n: (n != "ntire", n))
    specs: dict[str, MetricSpec] = {}
    for name in names:
        try:
            specs[name] = get_spec(name)
        except PluginError as error:
            log_note(f"{error.problem} ({error.location})")
    return specs


# --- PSNR and SSIM of an SR and an HR image ---


@dataclass(frozen=True, kw_only=True)
class MetricValues:
    """PSNR and SSIM of one image pair under one spec.

    Attributes:
        spec: The metric spec.
        psnr: In dB, None where the images are too small for the spec.
        ssim: In [-1, 1], None where the images are too small for the spec.
    """

    spec: MetricSpec
    psnr: float | None
    ssim: float | None


def compute_all_specs(sr: SRImage, hr: Pixels) -> tuple[MetricValues, ...]:
    """Return PSNR and SSIM of an image pair under every spec.

    Args:
        sr: (h, w, 3), uint8 or floats in [0, 1].
        hr: (h, w, 3) uint8.

    Raises:
        IncomparableImages: If shapes or dtypes do not match.
        InvalidOutput: If `sr` contains NaN, or floats that are levels of 0 to 255.
    """
    sr, hr = _comparable_arrays(sr, hr)
    return tuple(
        MetricValues(
            spec=spec,
            psnr=psnr(sr, hr, spec) if _is_large_enough(hr, spec, "psnr") else None,
            ssim=ssim(sr, hr, spec) if _is_large_enough(hr, spec, "ssim") else None,
        )
        for spec in all_specs().values()
    )


def psnr(sr: SRImage, hr: Pixels, spec: MetricSpec) -> float:
    """Return the peak signal-to-noise ratio of an image pair.

    The squared error is averaged over all pixels and channels at once, then converted to decibels;
    the mean of the PSNR of each channel would be another figure.

    Args:
        sr: (h, w, 3), uint8 or floats in [0, 1].
        hr: (h, w, 3) uint8.
        spec: The conventions: channels, crop border, rounding, epsilon.

    Returns:
        dB; infinity for equal images, where the spec adds no epsilon.

    Raises:
        IncomparableImages: If shapes or dtypes do not match, or nothing is left within the border.
        InvalidOutput: If `sr` contains NaN, or floats that are levels of 0 to 255.
    """
    sr_values, hr_values = _prepare_pair(sr, hr, spec, "psnr")
    mse = float(np.mean(np.square(sr_values - hr_values))) + spec.mse_epsilon * spec.peak**2
    return 20 * math.log10(spec.peak / math.sqrt(mse)) if mse else math.inf


def ssim(sr: SRImage, hr: Pixels, spec: MetricSpec) -> float:
    """Return the mean structural similarity of an image pair.

    Local statistics are computed only where the Gaussian window lies within the image (no padding),
    and the SSIM map is averaged over pixels and channels. Source: Wang et al., Image quality
    assessment, IEEE TIP 2004, eq. 13.

    Args:
        sr: (h, w, 3), uint8 or floats in [0, 1].
        hr: (h, w, 3) uint8.
        spec: The conventions: channels, crop border, rounding, window.

    Returns:
        A value in [-1, 1], 1 for equal images.

    Raises:
        IncomparableImages: If shapes or dtypes do not match, or the window does not fit between the
            borders.
        InvalidOutput: If `sr` contains NaN, or floats that are levels of 0 to 255.
    """
    sr_channels, hr_channels = (
        np.ascontiguousarray(np.moveaxis(values, -1, 0))
        for values in _prepare_pair(sr, hr, spec, "ssim")
    )
    maps = [_ssim_map(x, y, spec) for x, y in zip(sr_channels, hr_channels, strict=True)]
    return float(np.mean(maps))


def to_uint8(sr: ArrayLike, data_range: float) -> Pixels:
    """Convert floats in [0, data_range] to uint8: clip, scale in float32, round half to even.

    Args:
        sr: Floats of any shape; values outside the range, infinities included, are clipped.
        data_range: The value of white.

    Raises:
        InvalidOutput: If `sr` contains NaN.
    """
    return np.rint(_to_255_range(sr, data_range)).astype(np.uint8)


def _to_255_range(sr: ArrayLike, data_range: float) -> NDArray[np.floating]:
    """Clip floats to [0, data_range] and scale them to [0, 255] in float32."""
    values = np.asarray(sr, np.float32)
    if np.isnan(values).any():
        raise InvalidOutput(
            f"{int(np.isnan(values).sum())} of {values.size} output values are NaN",
            rule="pixel values must be numbers",
            remedy="look for a division by zero, or for weights that diverged",
        )
    return values.clip(0, data_range) * 255 / data_range


def _prepare_pair(
    sr: SRImage, hr: Pixels, spec: MetricSpec, metric: Metric
) -> tuple[Float64Array, Float64Array]:
    """Return what a metric compares of both images, (h, w, C): their channels within the border."""
    sr, hr = _comparable_arrays(sr, hr)
    if not _is_large_enough(hr, spec, metric):
        raise IncomparableImages(
            f"an image of {_format_size(hr)} is too small for the metric spec '{spec.name}'",
            rule=f"a border of {spec.crop_border} pixels is cropped; SSIM needs "
            f"{spec.window_size} pixels within it",
            remedy="use larger images",
        )
    height, width = (side - spec.crop_border for side in hr.shape[:2])
    interior = np.s_[spec.crop_border : height, spec.crop_border : width]
    sr_levels, hr_levels = _to_levels(sr, spec)[interior], hr[interior].astype(np.float64)
    return _select_channels(sr_levels, spec, metric), _select_channels(hr_levels, spec, metric)


def _to_levels(sr: SRImage, spec: MetricSpec) -> Float64Array:
    """Convert to levels in [0, 255]; floats are rounded as the spec requires, uint8 is kept."""
    _, round_levels = _OUTPUT_ROUNDING[spec.output_rounding]
    levels = sr if sr.dtype == np.uint8 else round_levels(_to_255_range(sr, 1.0))
    return levels.astype(np.float64)


def _select_channels(levels: Float64Array, spec: MetricSpec, metric: Metric) -> Float64Array:
    """Convert RGB levels (h, w, 3) to the channels that are compared, (h, w, C) in [0, 255]."""
    if spec.luma is None:
        return levels
    # 194 of all RGB colors have a luma exactly halfway between two levels, so that rounding depends
    # on the order of the sum: np.dot with the undivided weights rounds as the other programs do.
    values = np.dot(levels, spec.luma.weights)[..., None] / spec.luma.divisor + spec.luma.offset
    return np.rint(values) if metric in spec.round_luma_for else values


def _ssim_map(x: Float64Array, y: Float64Array, spec: MetricSpec) -> Float64Array:
    """Return the SSIM map of two channels (Wang et al., eq. 13).

    Both variances occur only as their sum, which is filtered once: E[x² + y²] - mean_x² - mean_y².
    """
    c1, c2 = (0.01 * spec.peak) ** 2, (0.03 * spec.peak) ** 2  # K1 = 0.01, K2 = 0.03
    mean_x, mean_y = _gaussian_filter(x, spec), _gaussian_filter(y, spec)
    squared_means, mean_product = mean_x**2 + mean_y**2, mean_x * mean_y
    variances = _gaussian_filter(x * x + y * y, spec) - squared_means
    covariance = _gaussian_filter(x * y, spec) - mean_product
    contrast_structure = (2 * covariance + c2) / (variances + c2)
    if spec.clip_negative_ssim:
        contrast_structure = contrast_structure.clip(min=0)
    return (2 * mean_product + c1) / (squared_means + c1) * contrast_structure


def _gaussian_filter(channel: Float64Array, spec: MetricSpec) -> Float64Array:
    """Return Gaussian-weighted means wherever the window fits; separable, rows then columns."""
    offsets = np.arange(spec.window_size) - (spec.window_size - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * spec.sigma**2))
    weights /= weights.sum()
    for axis in (0, 1):
        channel = sliding_window_view(channel, spec.window_size, axis) @ weights
    return channel


def _comparable_arrays(sr: Any, hr: Any) -> tuple[NDArray[Any], Pixels]:
    """Return both images as NumPy arrays, once type, shape and range have been checked."""
    sr, hr = as_array(sr), as_array(hr)
    for image, allow_float in ((sr, True), (hr, False)):
        is_float = allow_float and np.issubdtype(image.dtype, np.floating)
        if not (is_float or image.dtype == np.uint8) or image.ndim != 3 or image.shape[2] != 3:
            raise IncomparableImages(
                f"an image is {image.dtype} {image.shape}",
                rule="metrics compare (h, w, 3): uint8, or SR as floats in [0, 1]",
                remedy="convert the output of a network with esrjax.evaluation.metrics.to_uint8",
            )
    if sr.shape != hr.shape:
        raise IncomparableImages(
            f"the SR image is {_format_size(sr)}, the HR image {_format_size(hr)} (height x width)",
            rule="metrics compare images of the same size; nothing is cropped silently",
            remedy="check the scale, and that the HR image is cropped to a multiple of it",
        )
    # Clipped to [0, 1], levels of 0 to 255 would be a white image. A single value may overshoot.
    if sr.dtype != np.uint8 and sr.mean() > MAX_FLOAT_MEAN:
        raise InvalidOutput(
            f"the mean of the output is {sr.mean():g}",
            rule="floats are in [0, 1], where 1 is white",
            remedy="divide the output by its white level, for instance 255",
        )
    return sr, hr


def _is_large_enough(hr: Pixels, spec: MetricSpec, metric: Metric) -> bool:
    """Return whether a pixel, for SSIM a whole window, remains between the borders."""
    min_side = spec.window_size if metric == "ssim" else 1
    return min(hr.shape[:2]) >= min_side + 2 * spec.crop_border


def _format_size(pixels: SRImage) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"
