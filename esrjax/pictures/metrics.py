"""PSNR and SSIM of two pictures, as a metric spec says."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from esrjax.errors import UserError
from esrjax.pictures.files import Pixels
from esrjax.pictures.specs import SPECS, Metric, Spec

Floats = NDArray[np.float64]
Output = Pixels | NDArray[np.floating]  # (h, w, 3): a picture, or floats with white at 1


class Incomparable(UserError):
    """Two pictures that a metric cannot compare."""


class NotFinite(UserError):
    """A network output of which no picture can be made."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one spec says of two pictures; None where they are too small for it. psnr in dB."""

    spec: Spec
    psnr: float | None
    ssim: float | None


def readings(sr: Output, hr: Pixels) -> tuple[Reading, ...]:
    """PSNR and SSIM of two pictures under every spec."""
    _check_comparable(sr, hr)
    return tuple(
        Reading(
            spec=spec,
            psnr=psnr(sr, hr, spec) if _fits(hr, spec, 1) else None,
            ssim=ssim(sr, hr, spec) if _fits(hr, spec, spec.window) else None,
        )
        for spec in SPECS.values()
    )


def psnr(sr: Output, hr: Pixels, spec: Spec) -> float:
    """Decibels between two (h, w, 3) pictures, over one mean of all squared differences."""
    ours, theirs = _seen(sr, hr, spec, "psnr")
    error = float(np.mean(np.square(ours - theirs))) + spec.epsilon * spec.peak**2
    return 20 * math.log10(spec.peak / math.sqrt(error)) if error else math.inf


def ssim(sr: Output, hr: Pixels, spec: Spec) -> float:
    """Mean structural similarity of two (h, w, 3) pictures (Wang et al., TIP 2004, eq. 13).

    The statistics are taken where the window fits, the mean over pixels and channels alike.
    """
    ours, theirs = _seen(sr, hr, spec, "ssim")
    maps = [_similarity(x, y, spec) for x, y in zip(_planes(ours), _planes(theirs), strict=True)]
    return float(np.mean(maps))


def quantise(sr: ArrayLike, data_range: float) -> Pixels:
    """Floats, white at `data_range` -> bytes: clipped, scaled in float32, rounded half to even."""
    return np.rint(_scaled(sr, data_range)).astype(np.uint8)


def _scaled(sr: ArrayLike, data_range: float) -> NDArray[np.floating]:
    """Floats, white at `data_range` -> floats of 0 to 255."""
    values = np.asarray(sr, np.float32)
    if np.isnan(values).any():
        raise NotFinite(
            f"{int(np.isnan(values).sum())} of {values.size} output values are not numbers",
            rule="a picture is made of numbers",
            remedy="look for a division by zero, or for weights that diverged",
        )
    return values.clip(0, data_range) * 255 / data_range


def _seen(sr: Output, hr: Pixels, spec: Spec, metric: Metric) -> tuple[Floats, Floats]:
    """What a metric sees of both pictures, (h, w, C): their colour within the border."""
    _check_comparable(sr, hr)
    _check_sides(hr, spec, metric)
    height, width = (side - spec.border for side in hr.shape[:2])
    inner = np.s_[spec.border : height, spec.border : width]
    ours, theirs = _levels(sr, spec)[inner], hr[inner].astype(np.float64)
    return _colour(ours, spec, metric), _colour(theirs, spec, metric)


def _levels(sr: Output, spec: Spec) -> Floats:
    """A picture as it is; floats, white at 1, as the spec makes levels of 0 to 255 of them."""
    levels = sr if sr.dtype == np.uint8 else _scaled(sr, 1.0)
    match spec.quantiser:
        case "round":
            levels = np.rint(levels)
        case "truncate":
            levels = np.floor(levels)
        case "none":
            pass
    return levels.astype(np.float64)


def _colour(levels: Floats, spec: Spec, metric: Metric) -> Floats:
    """(h, w, 3) -> (h, w, C), levels of 0 to 255."""
    luma = spec.luma
    if luma is None:
        return levels
    # 194 colours lie half way between two levels: np.dot, in this order, rounds them as others do.
    values = np.dot(levels, luma.weights)[..., None] / luma.over + luma.black
    return np.rint(values) if metric in spec.levels else values


def _planes(values: Floats) -> list[Floats]:
    """The channels of (h, w, C), each whole in memory."""
    return [np.ascontiguousarray(plane) for plane in np.moveaxis(values, -1, 0)]


def _similarity(x: Floats, y: Floats, spec: Spec) -> Floats:
    """The SSIM map of two channels; eq. 13 needs both variances only as their sum."""
    c1, c2 = (0.01 * spec.peak) ** 2, (0.03 * spec.peak) ** 2
    mean_x, mean_y = _blur(x, spec), _blur(y, spec)
    squares, product = mean_x**2 + mean_y**2, mean_x * mean_y
    variances = _blur(x * x + y * y, spec) - squares
    covariance = _blur(x * y, spec) - product
    structure = (2 * covariance + c2) / (variances + c2)
    if spec.anticorrelated == "zero":
        structure = structure.clip(min=0)
    return (2 * product + c1) / (squares + c1) * structure


def _blur(plane: Floats, spec: Spec) -> Floats:
    """Gaussian means wherever the window fits, rows first, then columns."""
    offsets = np.arange(spec.window) - (spec.window - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * spec.sigma**2))
    weights /= weights.sum()
    for axis in (0, 1):
        plane = sliding_window_view(plane, spec.window, axis) @ weights
    return plane


def _check_comparable(sr: Output, hr: Pixels) -> None:
    for pixels, floats in ((sr, True), (hr, False)):
        kind = pixels.dtype == np.uint8 or (floats and np.issubdtype(pixels.dtype, np.floating))
        if not kind or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise Incomparable(
                f"a picture is {pixels.dtype} {pixels.shape}",
                rule="metrics compare (h, w, 3): uint8, or an output of floats, white at 1",
                remedy="turn a network's output into bytes with quantise",
            )
    if sr.shape != hr.shape:
        raise Incomparable(
            f"the SR picture is {_size(sr)}, the HR picture {_size(hr)} (height x width)",
            rule="metrics compare pictures of one size; nothing is cropped in silence",
            remedy="check the scale, and that the HR picture is cropped to a multiple of it",
        )


def _check_sides(pixels: Pixels, spec: Spec, metric: Metric) -> None:
    if not _fits(pixels, spec, spec.window if metric == "ssim" else 1):
        raise Incomparable(
            f"a picture of {_size(pixels)} is too small for the metric spec '{spec.name}'",
            rule=f"a border of {spec.border} pixels is dropped; SSIM needs {spec.window} within it",
            remedy="choose larger pictures",
        )


def _fits(pixels: Pixels, spec: Spec, least: int) -> bool:
    """Whether `least` pixels lie between the borders either way."""
    return min(pixels.shape[:2]) >= least + 2 * spec.border


def _size(pixels: Output) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"
