"""How fast a network could be here: what it must calculate and move, by what the machine can.

Source: the roofline model (Williams et al., 2009, doi:10.1145/1498765.1498785).
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from esrjax.contest.turns import turns
from esrjax.method import Method
from esrjax.network.compilation import flags
from esrjax.network.cost import cost_of

# Bytes that are read, and as many written, and the side of the square matrices: by platform.
SIZES = {"cpu": (2**28, 1024)}
ELSEWHERE = 2**28, 8192

Call = Literal["copy", "product"]


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one forward pass must do at least.

    elements: numbers that are read or written: picture in and out, weights once, and what every
    convolution gives, written once and read once.
    """

    macs: int
    elements: int


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the machine does at most in one precision.

    bytes_per_s: read and written by the fastest copy of a large array. macs_per_s: multiply-adds
    of the fastest product of large square matrices. samples_ms: all runs of both.
    """

    bytes_per_s: float
    macs_per_s: float
    samples_ms: Mapping[Call, tuple[float, ...]]

    def floor(self, macs: int, moved: int) -> tuple[float, Call]:
        """The milliseconds that so many MACs and bytes take at least, and which they hang on."""
        product, copy = macs / self.macs_per_s * 1e3, moved / self.bytes_per_s * 1e3
        return (product, "product") if product > copy else (copy, "copy")


def demand(method: Method, net: nnx.Module, shape: tuple[int, int]) -> Demand:
    """What a deployed network of `method` must do for one LR picture of `shape`."""
    counted = cost_of(method, net, side=shape)
    pictures = 3 * math.prod(shape) * (1 + method.scale**2)
    inner = sum(piece.activations for piece in counted.work if piece.needed)
    elements = pictures + counted.params_honest + 2 * inner
    return Demand(macs=counted.macs_honest, elements=elements)


class Probe:
    """A copy and a product in one precision; they may be timed more than once."""

    def __init__(self, precision: str):
        platform = jax.default_backend()
        self.moved, self.side = SIZES.get(platform, ELSEWHERE)
        dtype = jnp.dtype(precision)
        square = jnp.full((self.side, self.side), 0.5, dtype)
        self.calls: dict[Call, Callable[[], jax.Array]] = {
            "copy": _added(jnp.ones(self.moved // dtype.itemsize, dtype)),
            "product": _multiplied(square),
        }
        self.samples: dict[Call, list[float]] = {name: [] for name in self.calls}

    def measure(self, budget_s: float) -> None:
        """Time both in turn once more."""
        taken = turns(self.calls, budget_s=budget_s)
        for name, samples in self.samples.items():
            samples += taken.samples(name)

    def ceilings(self) -> Ceilings:
        """Of all that was measured."""
        return Ceilings(
            bytes_per_s=2 * self.moved / min(self.samples["copy"]) * 1e3,
            macs_per_s=self.side**3 / min(self.samples["product"]) * 1e3,
            samples_ms={name: tuple(samples) for name, samples in self.samples.items()},
        )


def _added(given: jax.Array) -> Callable[[], jax.Array]:
    """Adds to an array in place, so that no memory has to be found for what comes out."""
    options: Any = {"compiler_options": dict(flags()), "donate_argnums": 0}
    program: Any = jax.jit(lambda x: x + jnp.ones_like(x), **options).lower(given).compile()
    held = [given]

    def call() -> jax.Array:
        held[0] = program(held[0])
        return held[0]

    return call


def _multiplied(square: jax.Array) -> Callable[[], jax.Array]:
    options = dict(flags())
    program = jax.jit(jnp.matmul, compiler_options=options).lower(square, square).compile()
    return functools.partial(program, square, square)
