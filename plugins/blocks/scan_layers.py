"""Application of a sequence of blocks, unrolled or by one `lax.scan` over stacked weights."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax.nn.compilation import loop_body

from .stochastic_depth import StochasticDepth, save_keys_policy


def apply_blocks(blocks: Iterable[nnx.Module], x: Array, *, scan: bool, remat: bool) -> Array:
    """Return `x` after all `blocks`.

    Args:
        blocks: Modules that map an array to one of the same shape and dtype.
        x: The input of the first block.
        scan: Run consecutive blocks of equal structure (which differ only in their weights and
            rates of stochastic depth) by one `lax.scan`, which compiles the block once. A block
            whose output is captured by `taps` has a structure of its own and is not scanned.
        remat: Save only the inputs of blocks for the backward pass and recompute the rest there.
            On a CPU it has no effect without `scan`: XLA would undo it (common subexpression
            elimination).
    """
    for _, run in groupby(blocks, key=structure_key if scan else id):
        first, *rest = run
        x = _apply_scanned([first, *rest], x, remat) if rest else _apply(first, x, remat)
    return x


def structure_key(block: nnx.Module) -> Hashable:
    """Return a key that is equal for blocks of equal structure, whatever their weights."""
    copy = nnx.clone(block)
    for drop in _stochastic_depths(copy):
        drop.drop_prob = 0.0
    graph, state = nnx.split(copy)
    leaves, tree = jax.tree.flatten(state)
    return graph, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def xla_keeps_remat() -> bool:
    """Return whether XLA recomputes what is outside of a loop; on a CPU it merges both runs."""
    return jax.default_backend() != "cpu"


def _apply(block: Any, x: Array, remat: bool) -> Array:
    remat = remat and xla_keeps_remat()
    return nnx.remat(type(block).__call__, policy=save_keys_policy)(block, x) if remat else block(x)


def _apply_scanned(blocks: Sequence[nnx.Module], x: Array, remat: bool) -> Array:
    graph, *_ = nnx.split(blocks[0])
    rates = jnp.asarray(
        [[drop.drop_prob for drop in _stochastic_depths(block)] for block in blocks], x.dtype
    )
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(nnx.state, blocks))

    def step(x: Array, params: tuple[Any, Array]) -> tuple[Array, None]:
        block: Any = nnx.merge(graph, params[0])
        for drop, rate in zip(_stochastic_depths(block), params[1], strict=True):
            drop.drop_prob = rate
        with loop_body(True):
            return block(x), None

    step = jax.checkpoint(step, policy=save_keys_policy) if remat else step
    return lax.scan(step, x, (states, rates))[0]


def _stochastic_depths(block: nnx.Module) -> list[StochasticDepth]:
    return [module for _, module in nnx.iter_modules(block) if isinstance(module, StochasticDepth)]
