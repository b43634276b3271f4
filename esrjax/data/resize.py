"""MATLAB's bicubic `imresize` for 8-bit images, bit-exact."""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from esrjax.data.image_io import Pixels

Float64Array = NDArray[np.float64]


def bicubic_downscale(hr: Pixels, factor: int = 4) -> Pixels:
    """Return the LR image of an HR image, with antialiasing: how the LR datasets were made.

    Args:
        hr: (H, W, C) uint8.
        factor: The scale, as in MATLAB's `imresize(hr, 1/factor)`.

    Returns:
        (ceil(H / factor), ceil(W / factor), C) uint8.
    """
    return _imresize(hr, Fraction(1, factor))


def bicubic_upscale(lr: Pixels, factor: int = 4) -> Pixels:
    """Return the bicubic baseline of super-resolution.

    Args:
        lr: (h, w, C) uint8.
        factor: The scale, as in MATLAB's `imresize(lr, factor)`.

    Returns:
        (factor·h, factor·w, C) uint8.
    """
    return _imresize(lr, Fraction(factor))


def bicubic_resize(hr: Pixels, factor: float) -> Pixels:
    """Return the image resized by a fraction, with antialiasing.

    Args:
        hr: (H, W, C) uint8.
        factor: At most 1. Its decimal digits count: 0.7 is 7/10 exactly.

    Returns:
        (ceil(H·factor), ceil(W·factor), C) uint8.
    """
    return _imresize(hr, Fraction(str(factor)))


def resized_side(side: int, factor: float) -> int:
    """Return the length of a side of `side` pixels after `bicubic_resize`."""
    return math.ceil(side * Fraction(str(factor)))


def mod_crop(hr: Pixels, factor: int = 4) -> Pixels:
    """Crop (H, W, C) at the bottom and right so that both sides are multiples of `factor`."""
    height, width = (side - side % factor for side in hr.shape[:2])
    return hr[:height, :width]


def _imresize(pixels: Pixels, scale: Fraction) -> Pixels:
    """Resize the height, then the width, each pass rounded to 8 bits.

    MATLAB resizes the dimension with the smaller scale first; for equal scales that is the height.
    The intermediate image is uint8 there too, so that the order of the passes matters.
    """
    tall = _resize_height(pixels, scale)
    return np.ascontiguousarray(_resize_height(tall.swapaxes(0, 1), scale).swapaxes(0, 1))


def _resize_height(pixels: Pixels, scale: Fraction) -> Pixels:
    """Resize (h, w, C) to (ceil(h·scale), w, C), rounding half up as MATLAB's uint8() does."""
    indices, weights = _contributions(pixels.shape[0], scale)
    total = np.full((len(indices), *pixels.shape[1:]), 0.5)
    for index, weight in zip(indices.T, weights.T, strict=True):
        total += weight[:, None, None] * pixels[index]
    return np.floor(total).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _contributions(side: int, scale: Fraction) -> tuple[NDArray[np.intp], Float64Array]:
    """Return the input rows of every output row, and their weights (MATLAB's `contributions`).

    Returns:
        Indices, (n, taps), clamped to the image: the edge rows are replicated. Newer versions of
        MATLAB pad symmetrically instead, which changes the two outer LR pixels.
        Weights, (n, taps), normalized to a sum of 1.
    """
    # Antialiasing: for downscaling the kernel is widened by 1/kernel_scale.
    kernel_scale = min(scale, Fraction(1))
    half_width = 2 / kernel_scale  # of the kernel, in input rows
    output_rows = range(math.ceil(side * scale))
    # Pixel centers: output row i lies at (i + 1/2) / scale - 1/2 of the input. Exact rationals, so
    # that no tap is gained or lost by rounding.
    centers = [(row + Fraction(1, 2)) / scale - Fraction(1, 2) for row in output_rows]
    first = np.array([math.floor(center - half_width) + 1 for center in centers], np.intp)
    indices = first[:, None] + np.arange(math.ceil(2 * half_width))
    distance = np.array(centers, np.float64)[:, None] - indices
    weights = _cubic(distance * float(kernel_scale))
    return indices.clip(0, side - 1), weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: Float64Array) -> Float64Array:
    """Evaluate Keys' cubic kernel with a = -1/2 (IEEE Trans. ASSP 29, 1981, eq. 15)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
