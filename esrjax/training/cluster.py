"""Several processes that train one network together, by `jax.distributed`."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.experimental import multihost_utils

from esrjax.errors import UserError

PATIENCE = 60  # seconds in which all processes must have come together
SILENCE = 30  # seconds without a sign of life, after which a process counts as dead


class NoCluster(UserError):
    """The processes of a training have not come together."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One process among others.

    coordinator: `host:port` that the first process listens at. processes: how many there are.
    process: which one this is, from 0. What is None is asked of SLURM, Kubernetes, Open MPI or the
    machine of a TPU.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def join(self) -> None:
        """Come together with the others, before JAX is used for anything else."""
        explicit = None not in (self.coordinator, self.processes, self.process)
        try:
            jax.distributed.initialize(
                self.coordinator,
                self.processes,
                self.process,
                cluster_detection_method="deactivate" if explicit else None,
                initialization_timeout=PATIENCE,
                heartbeat_timeout_seconds=SILENCE,
                shutdown_timeout_seconds=SILENCE,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise self._alone(error) from error

    def _alone(self, error: Exception) -> NoCluster:
        said = str(error).strip().split("\n")[0][:300]
        return NoCluster(
            f"this process does not come together with the others: {said}",
            rule=f"all processes start within {PATIENCE} s, with the same coordinator and count, "
            "each with a number of its own; the first listens at the coordinator's port",
            place=self.coordinator,
            remedy="say --coordinator HOST:PORT --processes N --process I, or leave them to SLURM "
            "or Kubernetes with --distributed (docs/cluster.md)",
        )


def leads() -> bool:
    """Whether this is the first process, which alone writes what is written once."""
    return jax.process_index() == 0


def together(where: str) -> None:
    """Wait until all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def agreed(value: float) -> float:
    """The first process's number, on all."""
    if jax.process_count() == 1:
        return value
    return float(multihost_utils.broadcast_one_to_all(value))
