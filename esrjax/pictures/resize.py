"""MATLAB's bicubic on 8-bit pictures, bit for bit."""

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from esrjax.pictures.files import Pixels

Floats = NDArray[np.float64]


def downscale(hr: Pixels, factor: int = 4) -> Pixels:
    """(H, W, C) -> (ceil(H/factor), ceil(W/factor), C), antialiased: how the LR sets were made."""
    return _resize(hr, Fraction(1, factor))


def upscale(lr: Pixels, factor: int = 4) -> Pixels:
    """(h, w, C) -> (factor·h, factor·w, C): the baseline every method has to beat."""
    return _resize(lr, Fraction(factor))


def shrink(hr: Pixels, factor: float) -> Pixels:
    """(H, W, C) -> (ceil(H·factor), ceil(W·factor), C), antialiased; `factor` is at most 1."""
    return _resize(hr, Fraction(str(factor)))


def shrunk(side: int, factor: float) -> int:
    """How long a side of `side` pixels is afterwards."""
    return math.ceil(side * Fraction(str(factor)))


def crop(hr: Pixels, factor: int = 4) -> Pixels:
    """The largest top left part of (H, W, C) whose sides are multiples of `factor`."""
    height, width = (side - side % factor for side in hr.shape[:2])
    return hr[:height, :width]


def _resize(pixels: Pixels, scale: Fraction) -> Pixels:
    """Rows first, then columns, each pass rounded to 8 bits."""
    tall = _resize_rows(pixels, scale)
    return np.ascontiguousarray(_resize_rows(tall.swapaxes(0, 1), scale).swapaxes(0, 1))


def _resize_rows(pixels: Pixels, scale: Fraction) -> Pixels:
    """(h, w, C) -> (ceil(h·scale), w, C), rounded half up."""
    rows, weights = _taps(pixels.shape[0], scale)
    total = np.full((len(rows), *pixels.shape[1:]), 0.5)
    for row, weight in zip(rows.T, weights.T, strict=True):
        total += weight[:, None, None] * pixels[row]
    return np.floor(total).clip(0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _taps(side: int, scale: Fraction) -> tuple[NDArray[np.intp], Floats]:
    """(n, taps) input rows of every output row, the edge rows repeated; their weights, of sum 1."""
    shrink = min(scale, Fraction(1))  # widening the kernel by 1/shrink is the antialiasing
    reach = 2 / shrink  # the kernel's half width, in input rows
    outputs = range(math.ceil(side * scale))
    centres = [(row + Fraction(1, 2)) / scale - Fraction(1, 2) for row in outputs]
    first = np.array([math.floor(centre - reach) + 1 for centre in centres], np.intp)
    rows = first[:, None] + np.arange(math.ceil(2 * reach))
    distance = np.array(centres, np.float64)[:, None] - rows
    weights = _cubic(distance * float(shrink))
    return rows.clip(0, side - 1), weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: Floats) -> Floats:
    """Keys' kernel with a = -1/2 (IEEE Trans. ASSP 29, 1981, eq. 15)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
