"""Inference strategies: single pass, padding, tiles, x8 self-ensemble, windows.

An upscaler maps an LR image, (h, w, 3) uint8 or float32 in [0, 1], to an SR image of floats in
[0, 1]; `uint8_upscaler` rounds its result, `checked_upscaler` checks type and range of LR. One by
tiles also yields the rounded result in bands (`upscale_bands`), without holding all of it. A single
pass runs the network once over the whole image. Every other strategy takes upscalers and returns
one, so that they compose; `compose_upscaler` does so in a fixed order.
"""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from esrjax.data.image_arrays import LRArray, check_image
from esrjax.data.image_io import Pixels
from esrjax.errors import ImageTooSmall, InvalidArgument
from esrjax.evaluation.metrics import to_uint8

FloatImage = NDArray[np.float32]  # (h, w, 3), values in [0, 1], not clipped
ImageSize = tuple[int, int]  # (h, w)
Upscaler = Callable[[Any], FloatImage]  # `LRArray` (h, w, 3) -> (scale·h, scale·w, 3)
BAND_ROWS = 256  # SR pixels, of an image that is upscaled as a whole
MIN_WINDOW_SIDE = 8  # LR pixels
Windows = Mapping[int, float]  # side of the windows, LR pixels -> weight in the mean
PadMode = Literal["symmetric", "reflect", "constant"]  # of np.pad
# Arrays of NumPy or JAX: (1, h, w, 3) -> (1, scale·h, scale·w, 3), values in [0, data_range].
ForwardFn = Callable[[Any], Any]
# The same with a mask (h, w) that is 1 on the image and 0 on padding.
MaskedForwardFn = Callable[[Any, Any], Any]


def uint8_upscaler(upscaler: Upscaler) -> Callable[[Pixels], Pixels]:
    """Return the upscaler with its output converted to uint8 (see `to_uint8`)."""
    return lambda lr: to_uint8(upscaler(lr), 1.0)


@dataclass(frozen=True, eq=False)
class BandUpscaler:
    """An upscaler that also yields the SR image in bands.

    Attributes:
        whole: LR image -> SR image.
        bands: LR image -> its SR image as of `upscale_bands`.
    """

    whole: Upscaler
    bands: Callable[[Any], Iterator[Pixels]]

    def __call__(self, lr: Any) -> FloatImage:
        return self.whole(lr)


def upscale_bands(upscaler: Upscaler, lr: LRArray) -> Iterator[Pixels]:
    """Yield the SR image as uint8, in bands (rows, scale·w, 3) from top to bottom.

    Tiles are computed for one band at a time; an upscaler without tiles computes the whole image.

    Args:
        upscaler: A `BandUpscaler`, or any other one.
        lr: (h, w, 3).

    Raises:
        InvalidOutput: If the network's output contains NaN.
    """
    if isinstance(upscaler, BandUpscaler):
        yield from upscaler.bands(lr)
        return
    sr = upscaler(lr)
    for start in range(0, len(sr), BAND_ROWS):
        yield to_uint8(sr[start : start + BAND_ROWS], 1.0)


def upscaler_by_image(choose: Callable[[LRArray], Upscaler]) -> BandUpscaler:
    """Return an upscaler that runs the one that `choose` returns for the LR image."""
    return BandUpscaler(lambda lr: choose(lr)(lr), lambda lr: upscale_bands(choose(lr), lr))


def checked_upscaler(upscaler: Upscaler, name: str = "", min_side: int = 1) -> BandUpscaler:
    """Return the upscaler for every image that `image_arrays.check_image` accepts, and batches.

    A batch (n, h, w, 3) is upscaled image by image, to (n, scale·h, scale·w, 3).

    Args:
        upscaler: Runs on the images.
        name: Of the method, for messages.
        min_side: Its smallest side, LR pixels.
    """

    def check(lr: Any) -> LRArray:
        array = check_image(lr)
        check_min_side(name, min_side, array.shape[-3:-1])
        return array

    def upscale(lr: Any) -> FloatImage:
        array = check(lr)
        return upscaler(array) if array.ndim == 3 else np.stack([upscaler(one) for one in array])

    return BandUpscaler(upscale, lambda lr: upscale_bands(upscaler, check(lr)))


# --- single pass and padding ---


def single_pass(forward: ForwardFn, data_range: float) -> Upscaler:
    """Return an upscaler that runs a network once over the image at its exact size.

    Args:
        forward: The network.
        data_range: Images at its input and output have values in [0, data_range].
    """

    def upscale(lr: LRArray) -> FloatImage:
        sr = forward(to_network_input(lr, data_range)[None])
        return np.asarray(sr, np.float32)[0] / np.float32(data_range)

    return upscale


def to_network_input(lr: LRArray, data_range: float) -> NDArray[np.float32]:
    """Convert (h, w, 3) uint8, or float32 in [0, 1], to float32 in [0, data_range].

    The division by `255 / data_range`, instead of a multiplication, is that of the challenge's
    official test code: it gives the same float32 values, bit by bit.
    """
    if lr.dtype != np.uint8:
        return lr * np.float32(data_range)
    return lr.astype(np.float32) / np.float32(255 / data_range)


def pad_to_multiple(upscaler: Upscaler, multiple: int, scale: int) -> Upscaler:
    """Return an upscaler that pads LR at the bottom and right, and crops SR back.

    Padding is symmetric: the last row and column are repeated (np.pad's "symmetric", not
    "reflect"). Both sides grow to the next larger multiple, always by at least one pixel: an image
    whose sides are multiples already gets one more window in each direction. Source: team BBox,
    NTIRE 2025 image super-resolution.

    Args:
        upscaler: Runs on the padded image.
        multiple: LR pixels.
        scale: HR size / LR size.
    """

    def upscale(lr: LRArray) -> FloatImage:
        h, w = lr.shape[:2]
        padded = _pad(lr, padded_size((h, w), multiple), "symmetric")
        return upscaler(padded)[: scale * h, : scale * w]

    return upscale


def padded_size(size: ImageSize, multiple: int) -> ImageSize:
    """Return the next larger multiples of both sides; multiples grow too."""
    return (size[0] // multiple + 1) * multiple, (size[1] // multiple + 1) * multiple


def _pad(lr: LRArray, size: ImageSize, mode: PadMode) -> LRArray:
    """Pad (h, w, 3) at the bottom and right to `size`; "constant" pads with 0."""
    h, w = lr.shape[:2]
    return np.pad(lr, ((0, size[0] - h), (0, size[1] - w), (0, 0)), mode=mode)


# --- crops of an image that are upscaled separately: tiles, windows ---


@dataclass(frozen=True)
class TileSpan:
    """One axis of a tile or window, in LR pixels of the whole image.

    The network sees [start, stop); its output is used for [core_start, core_stop).

    Attributes:
        start: First pixel of the tile.
        stop: End of the tile, exclusive.
        core_start: First pixel for which the output is used.
        core_stop: End of these pixels, exclusive.
    """

    start: int
    stop: int
    core_start: int
    core_stop: int

    def core(self, scale: int, origin: int = 0) -> slice:
        """Return the core in SR pixels, counted from the LR pixel `origin`."""
        return slice((self.core_start - origin) * scale, (self.core_stop - origin) * scale)


def _upscale_tiles(
    upscaler: Upscaler, lr: LRArray, spans: Iterable[Iterable[TileSpan]], scale: int
) -> FloatImage:
    """Upscale every tile separately and join their cores, without blending at the seams.

    Args:
        upscaler: Runs on every tile.
        lr: (h, w, 3), the whole image.
        spans: The tiles along the height, and along the width.
        scale: HR size / LR size.
    """
    sr = np.empty((lr.shape[0] * scale, lr.shape[1] * scale, 3), np.float32)
    for row, column in itertools.product(*spans):
        sr[row.core(scale), column.core(scale)] = _upscale_core(upscaler, lr, row, column, scale)
    return sr


def _upscale_tile_rows(
    upscaler: Upscaler, lr: LRArray, spans: Iterable[Iterable[TileSpan]], scale: int
) -> Iterator[Pixels]:
    """Yield the same as uint8, a band for each row of tiles."""
    rows, columns = map(list, spans)
    for row in rows:
        height = (row.core_stop - row.core_start) * scale
        band = np.empty((height, lr.shape[1] * scale, 3), np.uint8)
        for column in columns:
            core = _upscale_core(upscaler, lr, row, column, scale)
            band[:, column.core(scale)] = to_uint8(core, 1.0)
        yield band


def _upscale_core(
    upscaler: Upscaler, lr: LRArray, row: TileSpan, column: TileSpan, scale: int
) -> FloatImage:
    """Upscale one tile, and return its core."""
    tile = np.ascontiguousarray(lr[row.start : row.stop, column.start : column.stop])
    return upscaler(tile)[row.core(scale, row.start), column.core(scale, column.start)]


# --- exact tiles: of equal size, compiled once, with the result of a single pass ---


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into tiles.

    Attributes:
        tile_size: (h, w) of every tile, LR pixels.
        receptive_field_radius: How far an output pixel depends on its surroundings, LR pixels.
    """

    tile_size: ImageSize
    receptive_field_radius: int


def fits_in_tile(lr: LRArray, tile_size: ImageSize) -> bool:
    """Return whether one tile contains the image, in either orientation of the tile."""
    height, width = _oriented(tile_size, lr)
    return lr.shape[0] <= height and lr.shape[1] <= width


def make_tiling(lr: LRArray, tile_size: ImageSize, receptive_field_radius: int) -> Tiling:
    """Return the tiling of an image.

    Args:
        lr: (h, w, 3).
        tile_size: (h, w), transposed if the image has the other orientation. A side that must
            be tiled and is not larger than twice the radius is enlarged to four times the radius,
            because no pixel of such a tile would be exact.
        receptive_field_radius: LR pixels.
    """
    radius = receptive_field_radius
    height, width = (
        side if side >= image_side or side > 2 * radius else 4 * radius
        for side, image_side in zip(_oriented(tile_size, lr), lr.shape[:2], strict=True)
    )
    return Tiling((height, width), radius)


def _oriented(tile_size: ImageSize, lr: LRArray) -> ImageSize:
    """Return the tile size in the orientation (landscape or portrait) of the image."""
    height, width = tile_size
    is_landscape = lr.shape[0] <= lr.shape[1]
    return tile_size if is_landscape == (height <= width) else (width, height)


def tile_sizes(image_sizes: Iterable[ImageSize], max_side: int) -> dict[ImageSize, ImageSize]:
    """Return the tile size for every image size: at most two, one landscape and one portrait.

    A tile size costs a compilation, so that images share them: it is the smallest size that
    contains all images of one orientation, up to the limit.

    Args:
        image_sizes: (h, w) of LR images.
        max_side: Limit of a tile side, LR pixels.
    """
    sizes = set(image_sizes)
    tile_size_of: dict[ImageSize, ImageSize] = {}
    for group in ({s for s in sizes if s[0] <= s[1]}, {s for s in sizes if s[0] > s[1]}):
        height, width = (max((size[axis] for size in group), default=0) for axis in (0, 1))
        tile_size_of |= dict.fromkeys(group, (min(max_side, height), min(max_side, width)))
    return tile_size_of


def tiled_upscaler(
    forward: MaskedForwardFn, tiling: Tiling, data_range: float, scale: int
) -> BandUpscaler:
    """Return an upscaler that runs a network in equal tiles, with the result of a single pass.

    Tiles overlap by twice the receptive field radius. Of each, only pixels at least a radius away
    from an inner edge are used: these do not depend on what lies beyond the tile. The outermost
    tiles are aligned with the image, so that padding acts as it does in a single pass. An image
    smaller than a tile is placed in its upper left corner and the rest is masked.

    Args:
        forward: The network, given the tile and its mask.
        tiling: Tile size and radius. The upscaler raises `InvalidArgument` for an image with a side
            that must be tiled, where the tile's is at most twice the radius.
        data_range: Images at the network's input and output have values in [0, data_range].
        scale: HR size / LR size.
    """

    def upscale_tile(lr: LRArray) -> FloatImage:
        mask: Any = np.zeros(tiling.tile_size, np.float32)
        mask[: lr.shape[0], : lr.shape[1]] = 1
        masked_pass = single_pass(lambda x: forward(x, mask), data_range)
        return masked_pass(_pad(lr, tiling.tile_size, "constant"))

    def spans(lr: LRArray) -> Iterator[Iterator[TileSpan]]:
        radius = tiling.receptive_field_radius
        return map(_tile_spans, lr.shape[:2], tiling.tile_size, (radius, radius))

    return BandUpscaler(
        lambda lr: _upscale_tiles(upscale_tile, lr, spans(lr), scale),
        lambda lr: _upscale_tile_rows(upscale_tile, lr, spans(lr), scale),
    )


def _tile_spans(image_side: int, tile_side: int, radius: int) -> Iterator[TileSpan]:
    """Yield tiles whose cores partition [0, image_side); the outermost touch the image edges."""
    if tile_side < image_side and tile_side <= 2 * radius:
        raise InvalidArgument(
            f"Tiles of {tile_side} pixels cannot cover an image side of {image_side} pixels",
            rule=f"a tile side is larger than {2 * radius}, twice the receptive field radius",
            remedy="use larger tiles, as `make_tiling` does",
        )
    core_start = 0
    while core_start < image_side:
        start = max(0, min(core_start - radius, image_side - tile_side))
        stop = min(start + tile_side, image_side)
        core_stop = image_side if stop == image_side else stop - radius
        yield TileSpan(start, stop, core_start, core_stop)
        core_start = core_stop


# --- x8 geometric self-ensemble ---


def self_ensemble_upscaler(upscaler: Upscaler) -> Upscaler:
    """Return an upscaler that averages over the eight flips and rotations of the image.

    Each output is transformed back before the mean. Source: Timofte et al., Seven ways to improve
    example-based single image super resolution, CVPR 2016, section 3.4.
    """

    def upscale(lr: LRArray) -> FloatImage:
        total = np.zeros(1, np.float32)  # broadcast to the size of the output by the first sum
        # k rotations by 90 degrees, then a left-right flip if the step is -1.
        for k, step in itertools.product(range(4), (1, -1)):
            sr = upscaler(np.ascontiguousarray(np.rot90(lr, k)[:, ::step]))
            total = total + np.rot90(sr[:, ::step], -k)
        return total / np.float32(8)

    return upscale


# --- windows: the weighted mean over several ways to cut an image ---
# Source: team BBox, NTIRE 2025 image super-resolution, inference with several window sizes.


def windowed_upscaler(upscaler: Upscaler, weights: Windows, scale: int) -> Upscaler:
    """Return an upscaler that averages over several window sizes.

    The image is first reflect-padded at the bottom and right until it consists of equal windows.
    Window sizes that cut an image into the same grid are run once, with the sum of their weights.

    Args:
        upscaler: Runs on every window.
        weights: Side of the windows, LR pixels -> weight; the weights are divided by their sum.
        scale: HR size / LR size.
    """

    def upscale(lr: LRArray) -> FloatImage:
        (h, w), total = lr.shape[:2], np.zeros(1, np.float32)
        for grid, weight in _grids((h, w), weights).items():
            rows, columns = map(_window_spans, (h, w), grid)
            padded = _pad(lr, (rows[-1].stop, columns[-1].stop), "reflect")
            sr = _upscale_tiles(upscaler, padded, (rows, columns), scale)
            total = total + np.float32(weight) * sr[: h * scale, : w * scale]
        return total / np.float32(sum(weights.values()))

    return upscale


def count_windows(size: ImageSize, weights: Windows) -> Counter[ImageSize]:
    """Return the sizes of all windows of an image of `size`, and how often each one is run."""
    return Counter(
        (row.stop - row.start, column.stop - column.start)
        for grid in _grids(size, weights)
        for row, column in itertools.product(*map(_window_spans, size, grid))
    )


def _grids(size: ImageSize, weights: Windows) -> dict[ImageSize, float]:
    """Return the number of windows (down, across) -> its weight.

    An image side that is a multiple of the window's gets one window more than would cover it.
    """
    grids: dict[ImageSize, float] = defaultdict(float)
    for side, weight in weights.items():
        grids[size[0] // side + 1, size[1] // side + 1] += weight
    return grids


def _window_spans(image_side: int, count: int) -> list[TileSpan]:
    """Return `count` equal windows that cover `image_side` pixels or a few more.

    Each window sees a margin of a tenth of its side around its core, except at the image edges.
    """
    core = -(-image_side // count)  # rounded up
    margin, end = core // 10, core * count
    return [
        TileSpan(max(0, start - margin), min(end, start + core + margin), start, start + core)
        for start in range(0, end, core)
    ]


# --- composition of strategies ---


def compose_upscaler(
    upscaler: Upscaler,
    scale: int,
    *,
    self_ensemble: bool = False,
    windows: Windows | None = None,
    pad_multiple: int | None = None,
) -> Upscaler:
    """Return an upscaler with strategies applied, the self-ensemble outermost.

    The image is flipped and rotated first, each of the eight images is cut into windows, and every
    window is padded: it is the size of the network's input that must be a multiple.

    Args:
        upscaler: The innermost one, a network.
        scale: HR size / LR size.
        self_ensemble: Average over the eight flips and rotations.
        windows: Side of the windows, LR pixels -> weight; None or empty for no windows.
        pad_multiple: Pad to the next larger multiple, LR pixels; None for no padding.
    """
    composed = pad_to_multiple(upscaler, pad_multiple, scale) if pad_multiple else upscaler
    composed = windowed_upscaler(composed, windows, scale) if windows else composed
    return self_ensemble_upscaler(composed) if self_ensemble else composed


# --- checks of the input ------------------------------------------------------------------------


def check_min_side(name: str, min_side: int, shape: tuple[int, ...]) -> None:
    """Raise `ImageTooSmall` unless a method accepts LR images of `shape`.

    Args:
        name: Of the method, for the message.
        min_side: Its smallest side, LR pixels.
        shape: (h, w), LR pixels.
    """
    if min(shape) < min_side:
        raise ImageTooSmall(
            f"the image is {shape[1]} x {shape[0]} pixels",
            rule=f"{name} accepts images of at least {min_side} pixels per side",
            remedy="use a larger image, or another method",
        )


def check_strategy(tile_size: Any, pad_multiple: Any, self_ensemble: Any, windows: Any) -> None:
    """Raise `InvalidArgument` unless the arguments of `upscaler` are of their types.

    The sides of windows and their weights are compared with the method by `check_windows`.
    """
    is_pair = isinstance(tile_size, tuple | list) and len(tile_size) == 2  # pyright: ignore[reportUnknownArgumentType]
    is_table = isinstance(windows, Mapping)
    valid = {
        "tile_size": tile_size is None or (is_pair and all(map(_is_side, tile_size))),
        "pad_multiple": pad_multiple is None or _is_side(pad_multiple),
        "self_ensemble": isinstance(self_ensemble, bool),
        "windows": windows is None
        or (is_table and all(map(_is_integer, windows)) and all(map(_is_number, windows.values()))),
    }
    values = {"tile_size": tile_size, "pad_multiple": pad_multiple}
    values |= {"self_ensemble": self_ensemble, "windows": windows}
    if invalid := [f"{name}={values[name]!r}" for name, is_valid in valid.items() if not is_valid]:
        raise InvalidArgument(
            f"Invalid arguments of an upscaler: {', '.join(invalid)}",
            rule="tile_size is (h, w), pad_multiple an integer, both above 0, in LR pixels; "
            "self_ensemble is True or False; windows are a dictionary side -> weight",
            remedy="correct them, for example tile_size=(256, 256), windows={200: 1.0}",
        )


def _is_side(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _is_integer(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, int | np.integer)


def _is_number(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, int | float | np.number)


def check_windows(name: str, min_side: int, windows: Windows) -> None:
    """Raise `InvalidArgument` unless a method can be run in these windows.

    Args:
        name: Of the method, for the message.
        min_side: Its smallest side, LR pixels.
        windows: Side of the windows, LR pixels -> weight.
    """
    # An image slightly larger than `side` is cut into two windows of little more than side / 2.
    min_window_side = max(2 * min_side, MIN_WINDOW_SIDE)
    too_small = sorted(side for side in windows if side < min_window_side)
    if too_small or not all(math.isfinite(w) and w > 0 for w in windows.values()):
        text = ", ".join(f"{side}:{weight:g}" for side, weight in windows.items())
        raise InvalidArgument(
            f"Invalid windows {text}",
            rule=f"{name} accepts windows of at least {min_window_side} pixels per side, because "
            "the windows that an image is cut into may have half as many; weights are positive",
            remedy="use larger windows, or leave them out",
        )
