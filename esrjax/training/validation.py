"""How good a network is while it trains."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flax import nnx
from jax import Array

from esrjax.method import Method
from esrjax.network.compilation import jit
from esrjax.network.reparam import deploy
from esrjax.pictures.score import Quality, score
from esrjax.pictures.sets import Pair
from esrjax.pictures.specs import Spec, named
from esrjax.pictures.upscale import to_8_bits, whole
from esrjax.training.batches import find
from esrjax.training.recipe import Validation


@dataclass(frozen=True, kw_only=True)
class Validator:
    """Scores deployed networks of one method on one set, every `every` steps."""

    method: Method
    pairs: Sequence[Pair]
    spec: Spec
    every: int

    @classmethod
    def of(cls, said: Validation, method: Method) -> Validator:
        """The set is found and the spec known before the first step."""
        return cls(
            method=method,
            pairs=find(said.set, method.scale),
            spec=named(said.spec),
            every=said.every,
        )

    def __call__(self, net: nnx.Module) -> Quality:
        """The mean quality of `net`, a network in train form and mode, left as it is."""
        thin = deploy(net)
        thin.eval()
        graph, state = nnx.split(thin)
        upscaler = whole(lambda lr: _forward(graph, state, lr), self.method.data_range)
        runs = upscaler if self.spec.floats else to_8_bits(upscaler)
        return score(runs, self.pairs, self.spec).mean


@functools.partial(jit, static_argnums=0)
def _forward(graph: nnx.GraphDef[Any], state: Any, lr: Array) -> Array:
    """Compiled once for every size, whatever the weights."""
    return nnx.merge(graph, state)(lr)
