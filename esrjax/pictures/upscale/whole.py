"""One picture in one pass: bytes to floats and back."""

from collections.abc import Callable

import numpy as np
from jax import Array
from numpy.typing import NDArray

from esrjax.pictures.files import Pixels
from esrjax.pictures.metrics import quantise

Floats = NDArray[np.float32]
Size = tuple[int, int]  # (h, w)
Upscaler = Callable[[Pixels], Floats]
Forward = Callable[[Array], Array]  # (1, h, w, 3) -> (1, s·h, s·w, 3), white at data_range


def to_8_bits(upscaler: Upscaler) -> Callable[[Pixels], Pixels]:
    """Clip to [0, 1], times 255, round half to even."""
    return lambda lr: quantise(upscaler(lr), 1.0)


def whole(forward: Forward, data_range: float) -> Upscaler:
    """The whole picture at its exact size, in one pass."""

    def upscale(lr: Pixels) -> Floats:
        return white_at_1(forward(floats(lr, data_range)[None]), data_range)

    return upscale


def floats(lr: Pixels, data_range: float) -> Array:
    """What a network is given. Source: the organisers' harness divides by 255 / data_range."""
    return lr.astype(np.float32) / np.float32(255 / data_range)  # pyright: ignore[reportReturnType] # jit takes numpy


def white_at_1(sr: Array, data_range: float) -> Floats:
    """`(1, h, w, 3)` of a network -> `(h, w, 3)`."""
    return np.asarray(sr, np.float32)[0] / np.float32(data_range)
