"""SPANV2's block, three convolutions and the gate, in one pass over device memory.

Like `spab`; the gate is one more matmul of the convolutions' output.
"""

from typing import Any

import jax.numpy as jnp
from jax import Array

from esrjax.nn.ops import Kernel

from . import smem, tuning
from .fused_conv3 import CONFIG_SPACE, FusedConv3
from .tuning import Config

NAME = "gated_spab"


def call(
    u: Array,
    w1: Array,
    w2: Array,
    w3: Array,
    w: Array,
    b: Array,
    mask: Array | None = None,
    *,
    config: Config | None = None,
    interpret: Any = None,
) -> Array:
    """Return the operation's value; with parameters of the interpreter, on any platform.

    Args:
        u: Input of the block `(N, h, w, C)`.
        w1: Kernel of the first convolution `(3, 3, C, C)`.
        w2: Kernel of the second.
        w3: Kernel of the third.
        w: Kernel of the gate `(1, 1, C, C)`.
        b: Bias of the gate `(C,)`.
        mask: 1 for valid pixels `(h, w)`; None if all are.
        config: Tile sizes; by default the tuned ones.
        interpret: Parameters of the interpreter, or None for the device.
    """
    block = FusedConv3(
        name=NAME,
        activate=lambda x: jnp.maximum(x, 0),
        epilogue=lambda f, u, gate: (u + f) * gate,
        interpret=interpret,
        **(config or tuning.get_config(NAME, CONFIG_SPACE)),
    )
    return block(u, (w1, w2, w3), gate=(w[0, 0], b), mask=mask)


def unsupported_reason(u: Array, *others: Array) -> str | None:
    """Return None if the kernel supports the operands on this device, else the reason."""
    return smem.unsupported_reason(u, *others[:5], is_gated=True)  # the mask may have any dtype


KERNEL = Kernel(
    call=call,
    unsupported_reason=unsupported_reason,
    disabled_reason=lambda: tuning.disabled_reason(NAME),
)
