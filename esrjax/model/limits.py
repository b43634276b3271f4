"""What a method cannot be run on."""

import math

from esrjax.errors import UserError
from esrjax.pictures.upscale import Windows

SMALLEST = 8  # side of a window, LR pixels


class PictureTooSmall(UserError):
    """A picture smaller than the method accepts."""


class BadWindows(UserError):
    """Windows that a method cannot be run in."""


def require_side(name: str, min_side: int, shape: tuple[int, ...]) -> None:
    """Raise `PictureTooSmall` unless a method accepts LR pictures of `shape` (h, w)."""
    if min(shape) < min_side:
        raise PictureTooSmall(
            f"the picture is {shape[1]} x {shape[0]} pixels",
            rule=f"{name} accepts pictures of at least {min_side} pixels a side",
            remedy="give a larger picture, or use another method",
        )


def require_windows(name: str, min_side: int, windows: Windows) -> None:
    """Raise `BadWindows` unless a method accepts what is cut in windows of these sides."""
    smallest = max(2 * min_side, SMALLEST)
    small = sorted(side for side in windows if side < smallest)
    if small or not all(math.isfinite(w) and w > 0 for w in windows.values()):
        said = ", ".join(f"{side}:{weight:g}" for side, weight in windows.items())
        raise BadWindows(
            f"windows of {said} cannot be used",
            rule=f"{name} takes windows of at least {smallest} pixels a side, for what is cut may "
            "have half as many; weights are larger than 0",
            remedy="use larger windows, or leave them out",
        )
