"""SPANV2's block, three convolutions and the gate, in one pass over memory.

As `spab`; the gate is one more product of what has been found.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from esrjax.network.ops import Kernel

from . import devices, room, walk
from .devices import Block

NAME = "gated_spab"
BLOCKS = walk.BLOCKS


def call(
    u: Array,
    w1: Array,
    w2: Array,
    w3: Array,
    w: Array,
    b: Array,
    mask: Array | None = None,
    *,
    block: Block | None = None,
    interpret: Any = None,
) -> Array:
    """The operation's value; with parameters of the interpreter, on any platform."""
    run = walk.Walk(
        name=NAME,
        activate=lambda x: jnp.maximum(x, 0),
        close=lambda f, u, gate: (u + f) * gate,
        interpret=interpret,
        **room.fitting(block or devices.block(NAME, BLOCKS), u, gated=True),
    )
    return run(u, (w1, w2, w3), gate=(w[0, 0], b), mask=mask)


def why_not(u: Array, *others: Array) -> str | None:
    """None where the kernel serves; else device, types, sizes or precision that it does not."""
    return room.why_not(u, *others[:5], gated=True)  # a mask may be of any type


KERNEL = Kernel(call=call, why_not=why_not, unproved=lambda: devices.unproved(NAME))
