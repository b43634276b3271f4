"""How far one pixel reaches: the receptive field of a network, found by poisoning a pixel."""

from collections.abc import Callable

import jax
import numpy as np
from jax import Array

Forward = Callable[[Array], Array]

SIDES = (65, 129, 257)  # of the LR probe, pixels; odd, so that there is a middle


def reach(forward: Forward, scale: int) -> int | None:
    """LR pixels around a pixel outside of which it changes nothing; None where it reaches all.

    A NaN in the middle of the picture poisons exactly the output that depends on it.
    """
    for side in SIDES:
        radius = _radius(forward, side, scale)
        if radius < side // 2:
            return radius
    return None


def _radius(forward: Forward, side: int, scale: int) -> int:
    probe = np.full((1, side, side, 3), 0.5, np.float32)
    probe[:, side // 2, side // 2] = np.nan
    poisoned = np.isnan(np.asarray(jax.jit(forward)(probe))).max((0, 3))
    middle, where = side // 2, np.argwhere(poisoned) // scale
    return int(np.abs(where - middle).max(initial=0))
