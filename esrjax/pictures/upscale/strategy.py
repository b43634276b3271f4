"""Strategies put together, in the order in which they make sense."""

from esrjax.pictures.upscale.border import mirrored as grown
from esrjax.pictures.upscale.turns import self_ensemble as turned
from esrjax.pictures.upscale.whole import Upscaler
from esrjax.pictures.upscale.windows import Windows
from esrjax.pictures.upscale.windows import windows as cut


def strategy(
    upscaler: Upscaler,
    scale: int,
    *,
    self_ensemble: bool = False,
    windows: Windows | None = None,
    mirrored: int | None = None,
) -> Upscaler:
    """The picture turned, what was turned cut into windows, and every window mirrored."""
    runs = grown(upscaler, mirrored, scale) if mirrored else upscaler
    runs = cut(runs, windows, scale) if windows else runs
    return turned(runs) if self_ensemble else runs
