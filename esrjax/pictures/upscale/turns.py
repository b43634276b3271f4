"""The eight-fold self-ensemble."""

import numpy as np

from esrjax.pictures.files import Pixels
from esrjax.pictures.upscale.whole import Floats, Upscaler


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
