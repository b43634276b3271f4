"""Any LR -> SR function over one picture: whole or in tiles, turned, in windows, or several fused.

A picture is 8-bit RGB, `(h, w, 3)`. An upscaler gives floats with white at 1; `to_8_bits` ends it.
Strategies take an upscaler and give one, so that they go together.
"""

from esrjax.pictures.upscale.border import mirrored
from esrjax.pictures.upscale.fusion import Blend, adaptive, fused, weighted
from esrjax.pictures.upscale.strategy import strategy
from esrjax.pictures.upscale.tiles import Canvas, canvas, canvases, fits, tiled
from esrjax.pictures.upscale.turns import self_ensemble
from esrjax.pictures.upscale.whole import Floats, Size, Upscaler, to_8_bits, whole
from esrjax.pictures.upscale.windows import Windows, windows

__all__ = [
    "Blend",
    "Canvas",
    "Floats",
    "Size",
    "Upscaler",
    "Windows",
    "adaptive",
    "canvas",
    "canvases",
    "fits",
    "fused",
    "mirrored",
    "self_ensemble",
    "strategy",
    "tiled",
    "to_8_bits",
    "weighted",
    "whole",
    "windows",
]
