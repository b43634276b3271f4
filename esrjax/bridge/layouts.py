"""Arrays of ours, channels last, as PyTorch may have them."""

import math

import numpy as np

from esrjax.bridge.case import Array


def layouts(ours: Array, shape: tuple[int, ...]) -> list[Array]:
    """`ours (N, ..., C)` as arrays of `shape`: channels first or last, a picture or its tokens.

    Tokens lie in raster order. Where `shape` has fewer channels, they are the first.
    """
    found = [ours] if ours.shape == shape else []
    if ours.ndim < 2 or len(shape) < 2 or shape[0] != len(ours):
        return found
    tokens = ours.reshape(len(ours), -1, ours.shape[-1])
    for axis, kept, tensor in ((1, 1, tokens.mT), (-1, 2, tokens)):
        channels, places = shape[axis], math.prod(shape[1:]) // max(shape[axis], 1)
        if channels <= ours.shape[-1] and places == tokens.shape[1]:
            found.append(np.take(tensor, np.arange(channels), kept).reshape(shape))
    return found


def channels_first(ours: Array) -> Array:
    """`(N, ..., C) -> (N, C, ...)`."""
    return np.moveaxis(ours, -1, 1)
