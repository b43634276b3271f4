"""Pictures side by side, each under its name."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from esrjax.pictures.files import Pixels

HEADER = 24  # height of the line with the name, pixels
GAP = 6


def side_by_side(pictures: Mapping[str, Pixels], zoom: int = 1) -> Pixels:
    """One row of `(h, w, 3)` pictures of one height, each pixel `zoom` times as large."""
    panels = [_panel(name, pixels, zoom) for name, pixels in pictures.items()]
    gap = np.full((panels[0].shape[0], GAP, 3), 255, np.uint8)
    row = [part for panel in panels for part in (panel, gap)][:-1]
    return np.concatenate(row, axis=1)


def window(pixels: Pixels, top: int, left: int, side: int) -> Pixels:
    """The square of `side` pixels with its corner at (top, left)."""
    return pixels[top : top + side, left : left + side]


def busiest(pixels: Pixels, side: int, step: int = 16) -> tuple[int, int]:
    """The corner of the square in which neighbours differ most: where to look for detail."""
    grey = pixels.astype(np.float64).mean(-1)
    change = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    corners = [
        (top, left)
        for top in range(0, pixels.shape[0] - side + 1, step)
        for left in range(0, pixels.shape[1] - side + 1, step)
    ]
    return max(corners, key=lambda c: window(change, *c, side).sum())  # pyright: ignore[reportArgumentType] # any array has windows


def _panel(name: str, pixels: Pixels, zoom: int) -> Pixels:
    """The picture under its name, black on white."""
    large = pixels.repeat(zoom, axis=0).repeat(zoom, axis=1)
    header = Image.new("RGB", (large.shape[1], HEADER), "white")
    ImageDraw.Draw(header).text((4, 4), name, fill="black", font=ImageFont.load_default(14))
    return np.concatenate([np.asarray(header), large])
