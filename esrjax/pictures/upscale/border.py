"""A picture that a mirror makes larger before a network sees it."""

import numpy as np

from esrjax.pictures.files import Pixels
from esrjax.pictures.upscale.whole import Floats, Size, Upscaler


def mirrored(upscaler: Upscaler, multiple: int, scale: int) -> Upscaler:
    """The picture mirrored below and to the right, last row and column repeated, then cut back.

    Its sides grow to the next larger multiple, always by at least one pixel: a picture that fills
    its windows gets one more of each. Source: team BBox, NTIRE 2025 image super-resolution.
    """

    def upscale(lr: Pixels) -> Floats:
        h, w = lr.shape[:2]
        high, wide = larger((h, w), multiple)
        grown = np.pad(lr, ((0, high - h), (0, wide - w), (0, 0)), mode="symmetric")
        return upscaler(grown)[: scale * h, : scale * w]

    return upscale


def larger(size: Size, multiple: int) -> Size:
    """The next larger multiples of both sides."""
    return (size[0] // multiple + 1) * multiple, (size[1] // multiple + 1) * multiple
