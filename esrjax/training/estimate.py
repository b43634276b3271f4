"""What a step would cost, without taking it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.network.cost import cost
from esrjax.training.objective import Objective
from esrjax.training.recipe import Stage
from esrjax.training.state import State
from esrjax.training.teacher import Teacher


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A step of a stage whose arrays have shapes and no values."""

    net: nnx.Module
    objective: Objective
    state: State
    scale: int

    def require(self) -> None:
        """Raise what the loss of one step would raise."""
        weights = self._taught and self._taught.state
        jax.eval_shape(self._loss, self.state.params, self._fixed, weights, *self._pictures)

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of a step, the way back counted twice."""
        h, w = self._patch
        forward = cost(self.net, side=round(math.sqrt(h * w)) // self.scale).macs_honest
        return 3 * forward * self._stage.data.batch

    @cached_property
    def memory(self) -> Mapping[str, float]:
        """MiB by use: weights and optimiser, and what a pass keeps for its way back.

        A compiler may keep less, and needs room of its own.
        """
        state, weights = self.state, self._taught and self._taught.state
        kept = jax.eval_shape(self._way_back, state.params, self._fixed, weights, *self._pictures)
        return {
            "weights": _mib((state.params, state.frozen, state.ema, state.best, weights)),
            "gradient and optimiser": _mib((state.params, state.optimiser)),
            "kept for the way back": _mib(kept),
        }

    def _loss(self, params: Any, fixed: Any, weights: Any, lr: Array, hr: Array) -> Any:
        step = jnp.zeros((), jnp.int32)
        return self.objective(params, fixed, weights, step, lr, hr)[0]

    def _way_back(self, params: Any, *rest: Any) -> Any:
        return jax.vjp(lambda params: self._loss(params, *rest), params)[1]

    @property
    def _stage(self) -> Stage:
        return self.objective.stage

    @property
    def _taught(self) -> Teacher | None:
        return self.objective.teacher

    @property
    def _fixed(self) -> tuple[Any, Any]:
        return self.state.frozen, self.state.rest

    @property
    def _patch(self) -> tuple[int, int]:
        """The largest."""
        return max(self._stage.data.shapes, key=math.prod)

    @property
    def _pictures(self) -> list[jax.ShapeDtypeStruct]:
        """LR and HR of the part of a batch that goes through at once."""
        (h, w), s = self._patch, self.scale
        n = self._stage.data.batch // self._stage.accumulate
        sizes = (h // s, w // s), (h, w)
        return [jax.ShapeDtypeStruct((n, *size, 3), jnp.uint8) for size in sizes]


def _mib(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) / 2**20
