"""Labelled images side by side, square crops, and the crop with the most detail."""

import itertools
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from esrjax.data.image_io import Pixels

HEADER_HEIGHT = 24  # of the line with the label, pixels
GAP = 6  # between panels, pixels


def side_by_side(images: Mapping[str, Pixels], zoom: int = 1) -> Pixels:
    """Return images in one row, each under its label.

    Args:
        images: Label -> (h, w, 3) uint8, all of the same height.
        zoom: Every pixel becomes a square of `zoom` pixels.

    Returns:
        (24 + zoom·h, W, 3) uint8, on white.
    """
    row: list[Pixels] = []
    for label, pixels in images.items():
        zoomed = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
        header = Image.new("RGB", (zoomed.shape[1], HEADER_HEIGHT), "white")
        ImageDraw.Draw(header).text((4, 4), label, fill="black", font=ImageFont.load_default(14))
        gap = np.full((HEADER_HEIGHT + zoomed.shape[0], GAP, 3), 255, np.uint8)
        row += [np.concatenate([np.asarray(header), zoomed]), gap]
    return np.concatenate(row[:-1], axis=1)


def crop_square(pixels: Pixels, top: int, left: int, side: int) -> Pixels:
    """Return the square of `side` pixels whose upper left corner is (top, left)."""
    return pixels[top : top + side, left : left + side]


def most_detailed_crop(pixels: Pixels, side: int, step: int = 16) -> tuple[int, int]:
    """Return the corner (top, left) of the square with the most detail.

    Detail is the sum of absolute differences of neighboring pixels (total variation) of the gray
    image.

    Args:
        pixels: (h, w, 3) uint8.
        side: Of the square, pixels.
        step: Squares are compared whose corners are multiples of it, pixels.
    """
    gray = pixels.astype(np.float64).mean(-1)
    variation = np.abs(np.diff(gray, axis=0))[:, :-1] + np.abs(np.diff(gray, axis=1))[:-1]
    tops, lefts = (range(0, length - side + 1, step) for length in pixels.shape[:2])
    corners = itertools.product(tops, lefts)
    return max(corners, key=lambda corner: crop_square(variation, *corner, side).sum())  # pyright: ignore[reportArgumentType] # slicing takes any dtype
