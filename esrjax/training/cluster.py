"""Multi-process training with `jax.distributed`."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.experimental import multihost_utils

from esrjax.errors import UserError

INIT_TIMEOUT_S = 60  # within which all processes must connect
HEARTBEAT_TIMEOUT_S = 30  # without a heartbeat, after which a process counts as dead


class ClusterError(UserError):
    """Raised when the processes of a training cannot connect to each other."""


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
            ClusterError: They do not connect.
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
            raise self._error(error) from error

    def _error(self, error: Exception) -> ClusterError:
        reason = str(error).strip().split("\n")[0][:300]
        return ClusterError(
            f"cannot connect to the other processes: {reason}",
            rule=f"all processes start within {INIT_TIMEOUT_S} s, with the same coordinator and "
            "number of processes, each with its own id; process 0 listens at the coordinator",
            location=self.coordinator,
            remedy="pass --coordinator HOST:PORT --num-processes N --process-id I, or only "
            "--distributed on SLURM or Kubernetes (docs/cluster.md)",
        )


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
