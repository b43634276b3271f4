"""How a step runs on several devices: one jitted program over a mesh, or pmap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrjax.errors import UserError
from esrjax.network.compilation import jit
from esrjax.training import state as states
from esrjax.training.state import Step

_AXIS = "data"


class UnevenBatch(UserError):
    """A batch that the processes cannot share."""


@dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices over which the pictures of a batch are spread; weights are the same on all."""

    mesh: Mesh
    parallel: Literal["jit", "pmap"]

    @classmethod
    def dividing(cls, pictures: int, parallel: Literal["jit", "pmap"] = "jit") -> Devices:
        """As many devices as divide so many pictures, of every process the same number."""
        processes = jax.process_count()
        _require_even(pictures, processes, parallel)
        each = math.gcd(pictures // processes, jax.local_device_count())
        devices = [jax.local_devices(process)[:each] for process in range(processes)]
        return cls(mesh=Mesh(np.concatenate(devices), (_AXIS,)), parallel=parallel)

    def everywhere(self, tree: Any) -> Any:
        """The same arrays on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def held(self, pictures: np.ndarray[Any, Any]) -> jax.Array:
        """The same pictures on every device; each process gives its own, uncompared."""
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.make_array_from_callback(pictures.shape, sharding, lambda cut: pictures[cut])

    def spread(self, batch: Any) -> Any:
        """Arrays cut along their first axis, a piece for each device.

        Each process has rows of its own, which follow those of the process before.
        """
        cut = NamedSharding(self.mesh, PartitionSpec(_AXIS))
        return jax.tree.map(lambda own: jax.make_array_from_process_local_data(cut, own), batch)

    def compiled(self, objective: Any, optimiser: Any) -> Step:
        """The training step on these devices; the state it is given is used up."""
        if self.parallel == "jit":
            return jit(states.step(objective, optimiser), donate_argnums=0)
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


def here(tree: Any) -> Any:
    """Arrays that are the same everywhere, on the first device of this process alone."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _require_even(pictures: int, processes: int, parallel: str) -> None:
    if processes > 1 and parallel == "pmap":
        raise UnevenBatch(
            f"pmap does not go with {processes} processes",
            rule="pmap spreads a batch over the devices of one process",
            place="parallel",
            remedy='say parallel = "jit"',
        )
    if pictures % processes:
        raise UnevenBatch(
            f"{pictures} pictures cannot be shared by {processes} processes",
            rule="data.batch / accumulate is a multiple of the number of processes",
            place="data.batch",
            remedy="change data.batch, or start another number of processes",
        )
