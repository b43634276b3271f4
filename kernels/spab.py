"""SPAN's block, three convolutions and the attention, in one pass over memory.

One operation after the other, a block moves 20 C words a pixel through device memory: here it is
read once, halo included, and what it gives is written.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from esrjax.network.ops import Kernel

from . import devices, room, walk
from .devices import Block

NAME = "spab"
BLOCKS = walk.BLOCKS


def call(
    u: Array,
    w1: Array,
    b1: Array,
    w2: Array,
    b2: Array,
    w3: Array,
    b3: Array,
    mask: Array | None = None,
    *,
    block: Block | None = None,
    interpret: Any = None,
) -> Array:
    """The operation's value; with parameters of the interpreter, on any platform."""
    run = walk.Walk(
        name=NAME,
        activate=lambda x: x * _sigmoid(x),
        close=lambda r, u, gate: (r + u) * (_sigmoid(r) - 0.5),
        interpret=interpret,
        **room.fitting(block or devices.block(NAME, BLOCKS), u, gated=False),
    )
    return run(u, (w1, w2, w3), (b1, b2, b3), mask=mask)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + jnp.exp(-x))


def why_not(u: Array, *others: Array) -> str | None:
    """None where the kernel serves; else device, types, sizes or precision that it does not."""
    return room.why_not(u, *others[:6], gated=False)  # a mask may be of any type


KERNEL = Kernel(call=call, why_not=why_not, unproved=lambda: devices.unproved(NAME))
