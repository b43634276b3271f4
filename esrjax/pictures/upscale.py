"""Any LR -> SR function over one picture: whole or in tiles, once or over eight flips and turns.

A picture is 8-bit RGB, `(h, w, 3)`. An upscaler gives floats with white at 1; `to_8_bits` ends it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jax import Array
from numpy.typing import NDArray

from esrjax.pictures.files import Pixels
from esrjax.pictures.metrics import quantise

Floats = NDArray[np.float32]
Upscaler = Callable[[Pixels], Floats]
Forward = Callable[[Array], Array]  # (1, h, w, 3) -> (1, s·h, s·w, 3), white at data_range
MaskedForward = Callable[[Array, Array], Array]  # the same; only where mask (h, w) is 1 are pixels

LIMIT = 256  # side of the largest tile, LR pixels
Size = tuple[int, int]


def to_8_bits(upscaler: Upscaler) -> Callable[[Pixels], Pixels]:
    """Clip to [0, 1], times 255, round half to even."""
    return lambda lr: quantise(upscaler(lr), 1.0)


def whole(forward: Forward, data_range: float) -> Upscaler:
    """The whole picture at its exact size, in one pass."""

    def upscale(lr: Pixels) -> Floats:
        return _white_at_1(forward(_floats(lr, data_range)[None]), data_range)

    return upscale


def _floats(lr: Pixels, data_range: float) -> Array:
    """Source: the organisers' harness divides by 255 / data_range."""
    return lr.astype(np.float32) / np.float32(255 / data_range)  # pyright: ignore[reportReturnType] # jit takes numpy


def _white_at_1(sr: Array, data_range: float) -> Floats:
    return np.asarray(sr, np.float32)[0] / np.float32(data_range)


# --- tiles of one size: any number of pictures, one program ------------------------------------


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
                done = _white_at_1(forward(_floats(tile, data_range)[None], mask), data_range)
                _paste(sr, done, rows, columns, scale)
        return sr

    return upscale


@dataclass(frozen=True)
class Span:
    """A tile along one axis: where it starts, and the pixels `[first, last)` it is right about."""

    start: int
    first: int
    last: int


def _spans(side: int, tile: int, reach: int) -> Iterator[Span]:
    """Tiles that together are right about `[0, side)`, first and last at the picture's borders."""
    done = 0
    while done < side:
        start = max(0, min(done - reach, side - tile))
        last = side if start + tile >= side else start + tile - reach
        yield Span(start, done, last)
        done = last


def _cut(lr: Pixels, rows: Span, columns: Span, size: Size) -> tuple[Pixels, Array]:
    part = lr[rows.start : rows.start + size[0], columns.start : columns.start + size[1]]
    h, w = part.shape[:2]
    tile, mask = np.zeros((*size, 3), np.uint8), np.zeros(size, np.float32)
    tile[:h, :w], mask[:h, :w] = part, 1
    return tile, mask  # pyright: ignore[reportReturnType] # jit takes numpy


def _paste(sr: Floats, tile: Floats, rows: Span, columns: Span, scale: int) -> None:
    def stretch(span: Span, origin: int) -> slice:
        return slice((span.first - origin) * scale, (span.last - origin) * scale)

    sr[stretch(rows, 0), stretch(columns, 0)] = tile[
        stretch(rows, rows.start), stretch(columns, columns.start)
    ]


# --- eight-fold self-ensemble and fusion -------------------------------------------------------


def self_ensemble(upscaler: Upscaler) -> Upscaler:
    """The mean over the eight flips and quarter turns of the picture, each undone.

    Source: Timofte et al., Seven ways to improve example-based SR, CVPR 2016, section 3.4.
    """

    def upscale(lr: Pixels) -> Floats:
        total = np.zeros(1, np.float32)
        for turns, flip in [(turns, flip) for turns in range(4) for flip in (False, True)]:
            total = total + _undo(upscaler(_turn(lr, turns, flip)), turns, flip)
        return total / np.float32(8)

    return upscale


def _turn(lr: Pixels, turns: int, flip: bool) -> Pixels:
    turned = np.rot90(lr, turns)
    return np.ascontiguousarray(turned[:, ::-1] if flip else turned)


def _undo(sr: Floats, turns: int, flip: bool) -> Floats:
    return np.rot90(sr[:, ::-1] if flip else sr, -turns)


def fused(upscalers: Sequence[Upscaler], weights: Sequence[float]) -> Upscaler:
    """The weighted mean of what several upscalers make of the same picture."""

    def upscale(lr: Pixels) -> Floats:
        shares = [w * upscaler(lr) for upscaler, w in zip(upscalers, weights, strict=True)]
        return np.asarray(sum(shares) / sum(weights), np.float32)

    return upscale
