"""Conversion of channels-last arrays (JAX) to the layouts that PyTorch modules use."""

import math

import numpy as np

from esrjax.bridge.case import Array


def candidate_layouts(array: Array, shape: tuple[int, ...]) -> list[Array]:
    """Return `array` in every layout that gives it PyTorch's `shape`.

    Layouts are channels first or last, each as an image (H, W) or as tokens (L) in raster order.
    Several fit where, for instance, the image has as many rows as channels.

    Args:
        array: JAX's array, `(N, ..., C)`.
        shape: PyTorch's shape. If it has fewer channels than `array`, the first ones are taken,
            because a golden file may store only the first channels of an activation.

    Returns:
        Arrays of `shape`; an empty list if no layout fits.
    """
    layouts = [array] if array.shape == shape else []
    if array.ndim < 2 or len(shape) < 2 or shape[0] != len(array):
        return layouts
    tokens = array.reshape(len(array), -1, array.shape[-1])
    for shape_axis, channel_axis, tensor in ((1, 1, tokens.mT), (-1, 2, tokens)):
        channels, num_tokens = shape[shape_axis], math.prod(shape[1:]) // max(shape[shape_axis], 1)
        if channels <= array.shape[-1] and num_tokens == tokens.shape[1]:
            layouts.append(np.take(tensor, np.arange(channels), channel_axis).reshape(shape))
    return layouts


def to_channels_first(array: Array) -> Array:
    """Return `array (N, ..., C)` as `(N, C, ...)`."""
    return np.moveaxis(array, -1, 1)
