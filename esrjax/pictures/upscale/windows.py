"""One picture cut into windows in several ways, and the weighted mean of the results.

Source: team BBox, NTIRE 2025 image super-resolution, inference over several window sizes.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from esrjax.pictures.files import Pixels
from esrjax.pictures.upscale.spans import Span, paste
from esrjax.pictures.upscale.whole import Floats, Size, Upscaler

Windows = Mapping[int, float]  # side of the windows, LR pixels -> weight of that way to cut

OVERLAP = 10  # windows see this share of a side of their neighbours: one tenth


def windows(upscaler: Upscaler, weights: Windows, scale: int) -> Upscaler:
    """The weighted mean over the ways to cut; ways that cut a picture alike are run once."""

    def upscale(lr: Pixels) -> Floats:
        total = np.zeros(1, np.float32)
        for counts, weight in _ways(lr.shape[:2], weights).items():
            total = total + np.float32(weight) * _cut_and_joined(upscaler, lr, counts, scale)
        return total / np.float32(sum(weights.values()))

    return upscale


def passes(size: Size, weights: Windows) -> Counter[Size]:
    """The sizes of all windows of a picture of `size`, and how often each is run."""
    return Counter(
        (row.stop - row.start, column.stop - column.start)
        for counts in _ways(size, weights)
        for row in _spans(size[0], counts[0])
        for column in _spans(size[1], counts[1])
    )


def _ways(size: tuple[int, ...], weights: Windows) -> dict[Size, float]:
    """Windows down and across -> their weight."""
    ways: Counter[Size] = Counter()
    for side, weight in weights.items():
        ways[size[0] // side + 1, size[1] // side + 1] += weight  # pyright: ignore[reportArgumentType] # weights count in parts
    return dict(ways)


def _cut_and_joined(upscaler: Upscaler, lr: Pixels, counts: Size, scale: int) -> Floats:
    """Every window by itself; of its result the window's own part is taken, nothing is blended.

    The picture is first mirrored below and to the right, its edge not repeated, until windows of
    one size fill it.
    """
    h, w = lr.shape[:2]
    rows, columns = (_spans(side, count) for side, count in zip((h, w), counts, strict=True))
    high, wide = rows[-1].stop, columns[-1].stop
    filled = np.pad(lr, ((0, high - h), (0, wide - w), (0, 0)), mode="reflect")
    sr = np.empty((high * scale, wide * scale, 3), np.float32)
    for row in rows:
        for column in columns:
            part = filled[row.start : row.stop, column.start : column.stop]
            paste(sr, upscaler(np.ascontiguousarray(part)), row, column, scale)
    return sr[: h * scale, : w * scale]


def _spans(side: int, count: int) -> list[Span]:
    """`count` equal windows over `side` pixels or a few more, each with a tenth of a side around.

    At the picture's borders there is nothing around.
    """
    inner = -(-side // count)
    around, end = inner // OVERLAP, inner * count
    return [
        Span(max(0, first - around), min(end, first + inner + around), first, first + inner)
        for first in range(0, end, inner)
    ]
