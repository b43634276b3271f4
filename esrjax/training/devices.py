"""Data parallelism: one jitted program over a mesh of devices, or pmap."""

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
from esrjax.training.state import TrainStepFn

_AXIS = "data"


class UnevenBatch(UserError):
    """Raised when a batch cannot be split evenly over the processes."""


@dataclass(frozen=True, kw_only=True)
class DataParallel:
    """The devices over which batches are sharded and weights are replicated.

    Attributes:
        mesh: Mesh of one axis, "data".
        parallel: "jit": one program over the mesh; "pmap": one program per device.
    """

    mesh: Mesh
    parallel: Literal["jit", "pmap"]

    @classmethod
    def for_batch(cls, batch_size: int, parallel: Literal["jit", "pmap"] = "jit") -> DataParallel:
        """Return the largest set of devices that divides a batch, as many of every process.

        Args:
            batch_size: Images of one micro-batch, over all processes.
            parallel: How the step is parallelized.

        Raises:
            UnevenBatch: The processes do not divide the batch, or pmap with several processes.
        """
        num_processes = jax.process_count()
        _check_even(batch_size, num_processes, parallel)
        per_process = math.gcd(batch_size // num_processes, jax.local_device_count())
        devices = [jax.local_devices(process)[:per_process] for process in range(num_processes)]
        return cls(mesh=Mesh(np.concatenate(devices), (_AXIS,)), parallel=parallel)

    def replicate(self, tree: Any) -> Any:
        """Return the arrays of a pytree, replicated on every device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def replicate_host(self, array: np.ndarray[Any, Any]) -> jax.Array:
        """Return a host array, replicated on every device.

        Every process supplies its own copy. Unlike `device_put`, this does not compare the copies
        of all processes, which would send all images over the network.
        """
        sharding = NamedSharding(self.mesh, PartitionSpec())
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def shard(self, batch: Any) -> Any:
        """Return the arrays of a pytree, sharded along their first axis.

        Each process supplies its own rows, which follow those of the process before.
        """
        sharding = NamedSharding(self.mesh, PartitionSpec(_AXIS))
        return jax.tree.map(
            lambda local: jax.make_array_from_process_local_data(sharding, local), batch
        )

    def compile_step(self, objective: Any, optimizer: Any) -> TrainStepFn:
        """Return the compiled training step.

        With "jit", its first argument, the state, is donated: do not use it after the call.

        Args:
            objective: The `Objective` of the stage.
            optimizer: The optax transformation.
        """
        if self.parallel == "jit":
            return jit(states.make_train_step(objective, optimizer), donate_argnums=0)
        return self._pmap_step(states.make_train_step(objective, optimizer, axis=_AXIS))

    def _pmap_step(self, step: TrainStepFn) -> TrainStepFn:
        devices = list(self.mesh.devices.flat)
        pmapped = jax.pmap(
            step, _AXIS, in_axes=(None, None, 0, 0), out_axes=(None, None), devices=devices
        )
        num_devices = len(devices)

        def run_step(state: Any, teacher_state: Any, lr: Any, hr: Any) -> Any:
            shards = [images.reshape(num_devices, -1, *images.shape[1:]) for images in (lr, hr)]
            return pmapped(state, teacher_state, *shards)

        return run_step


def local_replica(tree: Any) -> Any:
    """Return replicated arrays as arrays on the first device of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _check_even(batch_size: int, num_processes: int, parallel: str) -> None:
    if num_processes > 1 and parallel == "pmap":
        raise UnevenBatch(
            f"pmap does not support {num_processes} processes",
            rule="pmap shards a batch over the devices of one process",
            location="parallel",
            remedy='set parallel = "jit"',
        )
    if batch_size % num_processes:
        raise UnevenBatch(
            f"{batch_size} images cannot be split evenly over {num_processes} processes",
            rule="data.batch_size / grad_accum_steps is a multiple of the number of processes",
            location="data.batch_size",
            remedy="change data.batch_size, or start another number of processes",
        )
