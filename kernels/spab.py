"""SPAN's block, three convolutions and the attention, in one pass over device memory.

Unfused, a block moves 20 C values per pixel through device memory. Here its input is read once,
halo included, and its output is written once.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from esrjax.nn.ops import Kernel

from . import smem, tuning
from .fused_conv3 import CONFIG_SPACE, FusedConv3
from .tuning import Config

NAME = "spab"


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
    config: Config | None = None,
    interpret: Any = None,
) -> Array:
    """Return the operation's value; with parameters of the interpreter, on any platform.

    Args:
        u: Input of the block `(N, h, w, C)`.
        w1: Kernel of the first convolution `(3, 3, C, C)`.
        b1: Its bias `(C,)`.
        w2: Kernel of the second.
        b2: Its bias.
        w3: Kernel of the third.
        b3: Its bias.
        mask: 1 for valid pixels `(h, w)`; None if all are.
        config: Tile sizes; by default the tuned ones.
        interpret: Parameters of the interpreter, or None for the device.
    """
    block = FusedConv3(
        name=NAME,
        activate=lambda x: x * _sigmoid(x),
        epilogue=lambda r, u, gate: (r + u) * (_sigmoid(r) - 0.5),
        interpret=interpret,
        **(config or tuning.get_config(NAME, CONFIG_SPACE)),
    )
    return block(u, (w1, w2, w3), (b1, b2, b3), mask=mask)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + jnp.exp(-x))


def unsupported_reason(u: Array, *others: Array) -> str | None:
    """Return None if the kernel supports the operands on this device, else the reason."""
    return smem.unsupported_reason(u, *others[:6], is_gated=False)  # the mask may have any dtype


KERNEL = Kernel(
    call=call,
    unsupported_reason=unsupported_reason,
    disabled_reason=lambda: tuning.disabled_reason(NAME),
)
