"""Named conventions for PSNR and SSIM, each stated in full."""

import difflib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from esrjax.errors import UserError
from esrjax.pictures.files import Pixels

Floats = NDArray[np.float64]


class UnknownSpec(UserError):
    """A name that no metric spec has."""


class Incomparable(UserError):
    """Two pictures that a metric cannot compare."""


class NotFinite(UserError):
    """A network output of which no picture can be made."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """All that two people must agree on before they can compare decibels."""

    name: str
    version: int = 1
    colour: Literal["rgb", "y"]  # all three channels as one, or BT.601 luma from 16 to 235
    quantiser: Literal["uint8", "none"] = "uint8"  # whether luma is rounded to whole levels
    border: int = 4  # dropped on each side, pixels
    window: int = 11  # side of SSIM's Gaussian, pixels
    sigma: float = 1.5  # its standard deviation, pixels
    peak: int = 255  # the level of white


NTIRE = Spec(name="ntire", colour="rgb")
Y = Spec(name="y", colour="y")
SPECS = {spec.name: spec for spec in (NTIRE, Y)}


def named(name: str) -> Spec:
    """The spec of that name."""
    if name in SPECS:
        return SPECS[name]
    near = difflib.get_close_matches(name.lower(), SPECS, n=1)
    raise UnknownSpec(
        f"there is no metric spec '{name}'",
        rule=f"the specs are {', '.join(SPECS)}",
        remedy=f"did you mean '{near[0]}'?" if near else "choose one of these",
    )


def psnr(sr: Pixels, hr: Pixels, spec: Spec) -> float:
    """Decibels between two (h, w, 3) pictures, over one mean of all squared differences."""
    ours, theirs = _seen(sr, hr, spec)
    error = float(np.mean(np.square(ours - theirs)))
    return 20 * math.log10(spec.peak / math.sqrt(error)) if error else math.inf


def ssim(sr: Pixels, hr: Pixels, spec: Spec) -> float:
    """Mean structural similarity of two (h, w, 3) pictures (Wang et al., TIP 2004, eq. 13).

    The statistics are taken where the window fits, the mean over pixels and channels alike.
    """
    ours, theirs = _seen(sr, hr, spec, least=spec.window)
    maps = [_similarity(x, y, spec) for x, y in zip(_planes(ours), _planes(theirs), strict=True)]
    return float(np.mean(maps))


def quantise(sr: ArrayLike, data_range: float) -> Pixels:
    """Floats, white at `data_range` -> bytes: clipped, scaled in float32, rounded half to even."""
    values = np.asarray(sr, np.float32)
    if np.isnan(values).any():
        raise NotFinite(
            f"{int(np.isnan(values).sum())} of {values.size} output values are not numbers",
            rule="a picture is made of numbers",
            remedy="look for a division by zero, or for weights that diverged",
        )
    return np.rint(values.clip(0, data_range) * 255 / data_range).astype(np.uint8)


def _seen(sr: Pixels, hr: Pixels, spec: Spec, least: int = 1) -> tuple[Floats, Floats]:
    """What a metric sees of both pictures, (h, w, C): their colour within the border."""
    _check_comparable(sr, hr)
    _check_sides(sr, least, spec)
    height, width = (side - spec.border for side in sr.shape[:2])
    inner = np.s_[spec.border : height, spec.border : width]
    return _colour(sr[inner], spec), _colour(hr[inner], spec)


def _colour(pixels: Pixels, spec: Spec) -> Floats:
    """(h, w, 3) bytes -> (h, w, C) of 0 to 255."""
    values = pixels.astype(np.float64)
    if spec.colour == "rgb":
        return values
    # 194 colours lie half way between two levels: np.dot, in this order, rounds them as others do.
    luma = np.dot(values, [65.481, 128.553, 24.966])[..., None] / 255 + 16
    return np.rint(luma) if spec.quantiser == "uint8" else luma


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
    return (2 * product + c1) * (2 * covariance + c2) / ((squares + c1) * (variances + c2))


def _blur(plane: Floats, spec: Spec) -> Floats:
    """Gaussian means wherever the window fits, rows first, then columns."""
    offsets = np.arange(spec.window) - (spec.window - 1) / 2
    weights = np.exp(-(offsets**2) / (2 * spec.sigma**2))
    weights /= weights.sum()
    for axis in (0, 1):
        plane = sliding_window_view(plane, spec.window, axis) @ weights
    return plane


def _check_comparable(sr: Pixels, hr: Pixels) -> None:
    for pixels in (sr, hr):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise Incomparable(
                f"a picture is {pixels.dtype} {pixels.shape}",
                rule="metrics compare uint8 (h, w, 3)",
                remedy="turn a network's output into bytes with quantise",
            )
    if sr.shape != hr.shape:
        raise Incomparable(
            f"the SR picture is {_size(sr)}, the HR picture {_size(hr)} (height x width)",
            rule="metrics compare pictures of one size; nothing is cropped in silence",
            remedy="check the scale, and that the HR picture is cropped to a multiple of it",
        )


def _check_sides(pixels: Pixels, least: int, spec: Spec) -> None:
    if min(pixels.shape[:2]) < least + 2 * spec.border:
        raise Incomparable(
            f"a picture of {_size(pixels)} is too small for the metric spec '{spec.name}'",
            rule=f"a border of {spec.border} pixels is dropped; SSIM needs {spec.window} within it",
            remedy="choose larger pictures",
        )


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[0]}x{pixels.shape[1]}"
