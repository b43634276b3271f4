"""Receptive field of a network, measured by setting one pixel to NaN."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array

ForwardFn = Callable[[Array], Array]

PROBE_SIDES = (65, 129, 257)  # of the LR probe, pixels; odd, so that one pixel is the centre


def receptive_field_radius(forward: ForwardFn, scale: int) -> int | None:
    """Return the radius of the receptive field in LR pixels.

    A NaN in the centre of the image makes exactly those outputs NaN that depend on that pixel.

    Args:
        forward: LR images `(1, h, w, 3)` -> SR images `(1, s·h, s·w, 3)`.
        scale: Upscaling factor `s`.

    Returns:
        The largest distance, along an axis, between an LR pixel and the LR position of an output
        that depends on it; None if every output of the largest probe may depend on it, as where a
        network uses statistics of the whole image.
    """
    for side in PROBE_SIDES:
        radius = _poisoned_radius(forward, side, scale)
        if radius < side // 2:  # else it reaches the border of the probe, and may be larger
            return radius
    return None


def _poisoned_radius(forward: ForwardFn, side: int, scale: int) -> int:
    """Return the largest distance of a NaN in the output from the NaN in the input, LR pixels."""
    probe = np.full((1, side, side, 3), 0.5, np.float32)
    probe[:, side // 2, side // 2] = np.nan
    poisoned = np.isnan(np.asarray(jax.jit(forward)(probe))).max((0, 3))
    middle, positions = side // 2, np.argwhere(poisoned) // scale
    return int(np.abs(positions - middle).max(initial=0))
