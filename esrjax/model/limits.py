"""Checks of the inputs that a method accepts: image size and windows."""

import math

from esrjax.errors import UserError
from esrjax.evaluation.upscale import Windows

MIN_WINDOW_SIDE = 8  # LR pixels


class ImageTooSmall(UserError):
    """Raised when an image is smaller than a method accepts."""


class BadWindows(UserError):
    """Raised when windows are too small for a method, or weights are not positive."""


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


def check_windows(name: str, min_side: int, windows: Windows) -> None:
    """Raise `BadWindows` unless a method can be run in these windows.

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
        raise BadWindows(
            f"Invalid windows {text}",
            rule=f"{name} accepts windows of at least {min_window_side} pixels per side, because "
            "the windows that an image is cut into may have half as many; weights are positive",
            remedy="use larger windows, or leave them out",
        )
