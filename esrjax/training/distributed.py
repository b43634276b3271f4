"""Multi-process training, data parallelism over devices, and stops by a signal."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrjax.errors import DistributedError
from esrjax.nn.compilation import jit
from esrjax.training.train_state import Objective, TrainStepFn, make_train_step

INIT_TIMEOUT_S = 60  # within which all processes must connect
HEARTBEAT_TIMEOUT_S = 30  # without a heartbeat, after which a process counts as dead
_AXIS = "data"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


# --- processes ---


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """This process as a member of a group of processes.

    Fields that are None are detected from SLURM, Kubernetes, Open MPI or the TPU machine.

    Attributes:
        coordinator: `host:port` at which the first process listens.
        num_processes: Number of processes.
        process_id: Index of this process, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def join(self) -> None:
        """Connect to the other processes; call it before JAX initializes its devices.

        Raises:
            DistributedError: They do not connect.
        """
        explicit = None not in (self.coordinator, self.num_processes, self.process_id)
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.num_processes,
                self.process_id,
                cluster_detection_method="deactivate" if explicit else None,
                initialization_timeout=INIT_TIMEOUT_S,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
                shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            )
        except (ValueError, RuntimeError, OSError) as error:
            reason = str(error).strip().split("\n")[0][:300]
            raise DistributedError(
                f"cannot connect to the other processes: {reason}",
                rule=f"all processes start within {INIT_TIMEOUT_S} s, with the same coordinator "
                "and number of processes, each with its own id; process 0 listens at the "
                "coordinator",
                location=self.coordinator,
                remedy="pass --coordinator HOST:PORT --num-processes N --process-id I, or only "
                "--distributed on SLURM or Kubernetes (docs/cluster.md)",
            ) from error


def is_main_process() -> bool:
    """Return whether this is process 0, the only one that writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until all processes have reached the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def broadcast_from_main(value: float) -> float:
    """Return the value of process 0, on all processes."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(value))


# --- devices ---


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
            DistributedError: The processes do not divide the batch, or pmap with several processes.
        """
        num_processes = jax.process_count()
        if num_processes > 1 and parallel == "pmap":
            raise DistributedError(
                f"pmap does not support {num_processes} processes",
                rule="pmap shards a batch over the devices of one process",
                location="parallel",
                remedy='set parallel = "jit"',
            )
        if batch_size % num_processes:
            raise DistributedError(
                f"{batch_size} images cannot be split evenly over {num_processes} processes",
                rule="data.batch_size / grad_accum_steps is a multiple of the number of processes",
                location="data.batch_size",
                remedy="change data.batch_size, or start another number of processes",
            )
        per_process = math.gcd(batch_size // num_processes, jax.local_device_count())
        devices = [jax.local_devices(process)[:per_process] for process in range(num_processes)]
        return cls(mesh=Mesh(np.concatenate(devices), (_AXIS,)), parallel=parallel)

    def replicate(self, tree: Any) -> Any:
        """Return the arrays of a pytree, replicated on every device."""
        return jax.device_put(tree, self._sharding())

    def replicate_host(self, array: np.ndarray[Any, Any]) -> jax.Array:
        """Return a host array, replicated on every device.

        Every process supplies its own copy. Unlike `device_put`, this does not compare the copies
        of all processes, which would send all images over the network.
        """
        return jax.make_array_from_callback(array.shape, self._sharding(), array.__getitem__)

    def shard(self, batch: Any) -> Any:
        """Return the arrays of a pytree, sharded along their first axis.

        Each process supplies its own rows, which follow those of the process before.
        """
        to_global = partial(jax.make_array_from_process_local_data, self._sharding(_AXIS))
        return jax.tree.map(to_global, batch)

    def compile_step(
        self, objective: Objective, optimizer: optax.GradientTransformation
    ) -> TrainStepFn:
        """Return the compiled training step.

        With "jit", its first argument, the state, is donated: do not use it after the call.

        Args:
            objective: The loss.
            optimizer: The optax transformation.
        """
        if self.parallel == "jit":
            return jit(make_train_step(objective, optimizer), donate_argnums=0)
        devices = list(self.mesh.devices.flat)
        pmapped = jax.pmap(
            make_train_step(objective, optimizer, axis=_AXIS),
            _AXIS,
            in_axes=(None, None, 0, 0),
            out_axes=(None, None),
            devices=devices,
        )

        def run_step(state: Any, teacher_state: Any, lr: Any, hr: Any) -> Any:
            shards = [images.reshape(len(devices), -1, *images.shape[1:]) for images in (lr, hr)]
            return pmapped(state, teacher_state, *shards)

        return run_step

    def _sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))


def local_replica(tree: Any) -> Any:
    """Return replicated arrays as arrays on the first device of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


# --- signals ---


class PreemptionHandler:
    """Context manager that records SIGTERM and SIGINT; a second Ctrl-C interrupts at once.

    With several processes JAX handles SIGTERM instead, whichever process receives it, so that all
    processes stop after the same step.
    """

    def __init__(self) -> None:
        self._stop_requested, self._previous_handlers = False, dict[int, Any]()
        self._sync_count = 0

    def __enter__(self) -> PreemptionHandler:
        if jax.process_count() == 1:
            self._previous_handlers = {
                signum: signal.signal(signum, self._handle_signal) for signum in _SIGNALS
            }
        return self

    def __exit__(self, *exc_info: object) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)

    def should_stop(self) -> bool:
        """Return whether the training should stop; call it once after every step."""
        if jax.process_count() == 1:
            return self._stop_requested
        # JAX stops all processes at the largest count that one of them has reached, plus one.
        self._sync_count += 1
        return multihost_utils.reached_preemption_sync_point(self._sync_count)

    def _handle_signal(self, signum: int, _: FrameType | None) -> None:
        if self._stop_requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._stop_requested = True
