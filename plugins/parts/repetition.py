"""Parts in turn: one after the other, or by a scan that is compiled once for all of them."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from .chance import StochasticDepth, remembered


def in_turn(parts: Iterable[nnx.Module], x: Array, *, scan: bool, remat: bool) -> Array:
    """`x` through all `parts`.

    scan: those that follow each other and are alike, different in nothing but weights and rates of
    stochastic depth, by one scan; a part that is looked at is like no other. remat: for a gradient,
    keep only what lies between parts and make the rest again; XLA's CPU compiler undoes that but
    in a scan.
    """
    for _, alike in groupby(parts, key=kind if scan else id):
        first, *others = alike
        x = _scanned([first, *others], x, remat) if others else _alone(first, x, remat)
    return x


def kind(part: nnx.Module) -> Hashable:
    """Equal for parts that are alike."""
    twin = nnx.clone(part)
    for drop in _drops(twin):
        drop.rate = 0.0
    graph, state = nnx.split(twin)
    leaves, tree = jax.tree.flatten(state)
    return graph, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _alone(part: Any, x: Array, remat: bool) -> Array:
    return nnx.remat(type(part).__call__, policy=remembered)(part, x) if remat else part(x)


def _scanned(parts: Sequence[nnx.Module], x: Array, remat: bool) -> Array:
    graph, *_ = nnx.split(parts[0])
    rates = jnp.asarray([[drop.rate for drop in _drops(part)] for part in parts], x.dtype)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, parts))

    def step(x: Array, own: tuple[Any, Array]) -> tuple[Array, None]:
        part: Any = nnx.merge(graph, own[0])
        for drop, rate in zip(_drops(part), own[1], strict=True):
            drop.rate = rate
        return part(x), None

    step = jax.checkpoint(step, policy=remembered) if remat else step
    return lax.scan(step, x, (states, rates))[0]


def _drops(part: nnx.Module) -> list[StochasticDepth]:
    return [inner for _, inner in nnx.iter_modules(part) if isinstance(inner, StochasticDepth)]
