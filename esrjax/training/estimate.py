"""Estimated cost of a training step, from shapes alone."""

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
from esrjax.training.state import TrainState
from esrjax.training.teacher import Teacher


@dataclass(frozen=True, kw_only=True, eq=False)
class StepEstimate:
    """A training step of a stage, evaluated abstractly: arrays have shapes but no values.

    Attributes:
        net: The network.
        objective: The loss.
        state: The abstract training state.
        scale: Upscaling factor.
    """

    net: nnx.Module
    objective: Objective
    state: TrainState
    scale: int

    def check_loss(self) -> None:
        """Trace the loss, so that it raises what it would raise in the first step."""
        teacher_state = self._teacher and self._teacher.state
        jax.eval_shape(
            self._loss, self.state.params, self._frozen_and_rest, teacher_state, *self._micro_batch
        )

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of a step; the backward pass counts as two forward passes."""
        h, w = self._largest_patch
        forward = cost(self.net, image_size=round(math.sqrt(h * w)) // self.scale).macs_full
        return 3 * forward * self._stage.data.batch_size

    @cached_property
    def memory_mib(self) -> Mapping[str, float]:
        """MiB of weights, gradients and optimizer, and activations saved for the backward pass.

        The compiler may save fewer activations, and needs temporary buffers in addition.
        """
        state, teacher_state = self.state, self._teacher and self._teacher.state
        residuals = jax.eval_shape(
            self._vjp_residuals,
            state.params,
            self._frozen_and_rest,
            teacher_state,
            *self._micro_batch,
        )
        return {
            "weights": _mib((state.params, state.frozen, state.ema, state.best, teacher_state)),
            "gradients and optimizer": _mib((state.params, state.opt_state)),
            "saved activations": _mib(residuals),
        }

    def _loss(
        self, params: Any, frozen_and_rest: Any, teacher_state: Any, lr: Array, hr: Array
    ) -> Any:
        step = jnp.zeros((), jnp.int32)
        return self.objective(params, frozen_and_rest, teacher_state, step, lr, hr)[0]

    def _vjp_residuals(self, params: Any, *args: Any) -> Any:
        return jax.vjp(lambda params: self._loss(params, *args), params)[1]

    @property
    def _stage(self) -> Stage:
        return self.objective.stage

    @property
    def _teacher(self) -> Teacher | None:
        return self.objective.teacher

    @property
    def _frozen_and_rest(self) -> tuple[Any, Any]:
        return self.state.frozen, self.state.rest

    @property
    def _largest_patch(self) -> tuple[int, int]:
        """Size of the largest HR patch, (h, w) in pixels."""
        return max(self._stage.data.all_patch_sizes, key=math.prod)

    @property
    def _micro_batch(self) -> list[jax.ShapeDtypeStruct]:
        """Abstract LR and HR images of one micro-batch."""
        (h, w), s = self._largest_patch, self.scale
        n = self._stage.data.batch_size // self._stage.grad_accum_steps
        sizes = (h // s, w // s), (h, w)
        return [jax.ShapeDtypeStruct((n, *size, 3), jnp.uint8) for size in sizes]


def _mib(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) / 2**20
