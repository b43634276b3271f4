"""How a step runs on several devices: one jitted program over a mesh, or pmap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrjax.training import state as states
from esrjax.training.state import Step

_AXIS = "data"


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices over which the pictures of a batch are spread; weights are the same on all."""

    mesh: Mesh
    parallel: Literal["jit", "pmap"]

    @classmethod
    def dividing(cls, pictures: int, parallel: Literal["jit", "pmap"] = "jit") -> Devices:
        """As many devices as there are that divide so many pictures."""
        devices = jax.devices()[: math.gcd(pictures, jax.device_count())]
        return cls(mesh=Mesh(np.asarray(devices), (_AXIS,)), parallel=parallel)

    def everywhere(self, tree: Any) -> Any:
        """The same arrays on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def spread(self, batch: Any) -> Any:
        """Arrays cut along their first axis, a piece for each device."""
        return jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec(_AXIS)))

    def compiled(self, objective: Any, optimiser: Any) -> Step:
        """The training step on these devices; the state it is given is used up."""
        if self.parallel == "jit":
            return jax.jit(states.step(objective, optimiser), donate_argnums=0)
        return self._mapped(states.step(objective, optimiser, axis=_AXIS))

    def _mapped(self, step: Step) -> Step:
        devices = list(self.mesh.devices.flat)
        mapped = jax.pmap(
            step, _AXIS, in_axes=(None, None, 0, 0), out_axes=(None, None), devices=devices
        )
        count = len(devices)

        def run(state: Any, taught: Any, lr: Any, hr: Any) -> Any:
            pieces = [each.reshape(count, -1, *each.shape[1:]) for each in (lr, hr)]
            return mapped(state, taught, *pieces)

        return run
