"""Validation during training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx
from jax import Array

from esrjax.data.datasets import Pair
from esrjax.evaluation.metrics import MetricSpec, get_spec
from esrjax.evaluation.score import ImageMetrics, score
from esrjax.evaluation.upscale import single_pass, uint8_upscaler
from esrjax.method import Method
from esrjax.network.compilation import jit
from esrjax.network.reparam import deploy
from esrjax.training.batches import find_pairs
from esrjax.training.recipe import Validation


@dataclass(frozen=True, kw_only=True)
class Validator:
    """Scores networks of one method on one dataset, in deploy form.

    Attributes:
        method: The method.
        pairs: Image pairs of the dataset.
        spec: The metric spec.
        every: Interval in steps.
    """

    method: Method
    pairs: Sequence[Pair]
    spec: MetricSpec
    every: int

    @classmethod
    def create(cls, cfg: Validation, method: Method) -> Validator:
        """Return the validator of a stage.

        Args:
            cfg: The validation of the recipe.
            method: The method.

        Raises:
            UserError: There is no such dataset or metric spec.
        """
        return cls(
            method=method,
            pairs=find_pairs(cfg.dataset, method.scale),
            spec=get_spec(cfg.spec),
            every=cfg.every,
        )

    def __call__(self, net: nnx.Module) -> ImageMetrics:
        """Return the mean metrics of `net`; it may be in train form and mode, and is unchanged."""
        deployed = deploy(net)
        deployed.eval()
        graphdef, state = nnx.split(deployed)
        upscaler = single_pass(lambda lr: _forward(graphdef, state, lr), self.method.data_range)
        scorable = upscaler if self.spec.needs_float_output else uint8_upscaler(upscaler)
        return score(scorable, self.pairs, self.spec).mean


@functools.partial(jit, static_argnums=0)
def _forward(graphdef: nnx.GraphDef[Any], state: Any, lr: Array) -> Array:
    """Run the network; compiled once per image size, since the weights are an argument."""
    return nnx.merge(graphdef, state)(lr)
