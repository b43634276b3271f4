"""Tiles of one size: any number of pictures, one program, the result of one pass."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jax import Array

from esrjax.pictures.files import Pixels
from esrjax.pictures.upscale.spans import Span, paste
from esrjax.pictures.upscale.whole import Floats, Size, Upscaler, floats, white_at_1

MaskedForward = Callable[[Array, Array], Array]  # of LR and of a mask (h, w), 1 where pixels are

LIMIT = 256  # side of the largest tile, LR pixels


@dataclass(frozen=True)
class Canvas:
    """The one size of all tiles, and how far a pixel reaches: both in LR pixels."""

    size: Size
    reach: int


def fits(picture: Pixels, tile: Size) -> bool:
    """Whether one tile, lying or standing, holds the picture."""
    height, width = _turned(tile, picture)
    return picture.shape[0] <= height and picture.shape[1] <= width


def canvas(picture: Pixels, tile: Size, reach: int) -> Canvas:
    """The tile, turned as the picture is, and widened where its overlaps would leave nothing."""
    height, width = (
        side if side >= whole or side > 2 * reach else 4 * reach
        for side, whole in zip(_turned(tile, picture), picture.shape[:2], strict=True)
    )
    return Canvas((height, width), reach)


def _turned(tile: Size, picture: Pixels) -> Size:
    lies = picture.shape[0] <= picture.shape[1]
    return tile if lies == (tile[0] <= tile[1]) else (tile[1], tile[0])


def canvases(sizes: Iterable[Size], limit: int = LIMIT) -> dict[Size, Size]:
    """For every picture size the tile size that serves it: at most two, wide and tall."""
    every = set(sizes)
    groups = [{s for s in every if s[0] <= s[1]}, {s for s in every if s[0] > s[1]}]
    return {size: _covering(group, limit) for group in groups for size in group}


def _covering(group: set[Size], limit: int) -> Size:
    return min(limit, max(h for h, _ in group)), min(limit, max(w for _, w in group))


def tiled(forward: MaskedForward, canvas: Canvas, data_range: float, scale: int) -> Upscaler:
    """Equal tiles that overlap by twice the reach, aligned with the picture's borders.

    A picture smaller than the tile lies in its corner, and the rest of the tile is masked: the
    result is that of one pass over the whole picture.
    """

    def upscale(lr: Pixels) -> Floats:
        sr = np.empty((lr.shape[0] * scale, lr.shape[1] * scale, 3), np.float32)
        for rows in _spans(lr.shape[0], canvas.size[0], canvas.reach):
            for columns in _spans(lr.shape[1], canvas.size[1], canvas.reach):
                tile, mask = _cut(lr, rows, columns, canvas.size)
                done = white_at_1(forward(floats(tile, data_range)[None], mask), data_range)
                paste(sr, done, rows, columns, scale)
        return sr

    return upscale


def _spans(side: int, tile: int, reach: int) -> Iterator[Span]:
    """Tiles that together are right about `[0, side)`, first and last at the picture's borders."""
    done = 0
    while done < side:
        start = max(0, min(done - reach, side - tile))
        stop = min(start + tile, side)
        last = side if stop == side else stop - reach
        yield Span(start, stop, done, last)
        done = last


def _cut(lr: Pixels, rows: Span, columns: Span, size: Size) -> tuple[Pixels, Array]:
    part = lr[rows.start : rows.stop, columns.start : columns.stop]
    h, w = part.shape[:2]
    tile, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, np.float32)
    tile[:h, :w], mask[:h, :w] = part, 1
    return tile, mask  # pyright: ignore[reportReturnType] # jit takes numpy
