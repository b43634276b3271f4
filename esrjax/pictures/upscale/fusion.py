"""What several upscalers make of one picture, fused into one."""

from collections.abc import Callable, Sequence

import numpy as np

from esrjax.pictures.files import Pixels
from esrjax.pictures.metrics import quantise
from esrjax.pictures.upscale.whole import Floats, Upscaler

Blend = Callable[[Sequence[Floats]], Floats]

TINY = 1e-8  # added to distances, so that equal pictures have a closeness


def fused(upscalers: Sequence[Upscaler], blend: Blend) -> Upscaler:
    """The blend of what several upscalers make of the same picture."""
    return lambda lr: blend([upscaler(lr) for upscaler in upscalers])


def weighted(weights: Sequence[float]) -> Blend:
    """The weighted mean."""

    def blend(pictures: Sequence[Floats]) -> Floats:
        shares = [w * picture for picture, w in zip(pictures, weights, strict=True)]
        return np.asarray(sum(shares) / sum(weights), np.float32)

    return blend


def adaptive(pictures: Sequence[Floats]) -> Floats:
    """Team BBox's adaptive fusion of the pictures' bytes, as floats that are whole levels."""
    levels = closest([quantise(picture, 1.0) for picture in pictures])
    return levels.astype(np.float32) / np.float32(255)


# --- of bytes ----------------------------------------------------------------------------------


def mean(pictures: Sequence[Pixels], weights: Sequence[float]) -> Pixels:
    """The weighted mean of bytes, rounded half to even."""
    total = sum(
        w * picture.astype(np.float64) for picture, w in zip(pictures, weights, strict=True)
    )
    return np.rint(total / sum(weights)).astype(np.uint8)


def closest(pictures: Sequence[Pixels]) -> Pixels:
    """The mean of bytes weighted by how close each picture is to their plain mean, rounded down.

    A weight is `1 / (mean |picture − plain mean| + 1e-8)`, over their sum. Two pictures are equally
    far from their mean, so that each weighs one half, always: the result is `⌊(a + b) / 2⌋`.
    Source: team BBox, NTIRE 2025 image super-resolution, adaptive weighted fusion.
    """
    every = [picture.astype(np.float64) for picture in pictures]
    plain = sum(every) / len(every)
    closeness = [1 / (np.abs(picture - plain).mean() + TINY) for picture in every]
    total = sum(c / sum(closeness) * p for p, c in zip(every, closeness, strict=True))
    # Where all agree on a level the sum may lie a rounding error below it.
    return np.floor(np.clip(np.round(total, 9), 0, 255)).astype(np.uint8)
