"""Training checkpoints, written atomically by Orbax."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from esrjax.errors import UserError

MAX_TO_KEEP = 3  # older checkpoints are deleted


class CheckpointError(UserError):
    """Raised when a training checkpoint cannot be written or read."""


class _Manager(ocp.CheckpointManager):
    """Checkpoint manager without signal handling, which `esrjax.training.interruption` does."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpointer:
    """The training checkpoints of a run, by step over all stages.

    All processes take part in saving and restoring.

    Args:
        folder: Folder of the run; the checkpoints are stored in `checkpoints/`.

    Raises:
        CheckpointError: The folder cannot be created.
    """

    def __init__(self, folder: Path):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # errors are raised as UserError
        self.folder = folder.absolute() / "checkpoints"
        try:
            self._manager = _Manager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=MAX_TO_KEEP,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=False,  # so that `save` itself raises what fails
                ),
            )
        except OSError as error:
            raise self._error("checkpoints cannot be stored", error) from error

    def latest(self) -> int | None:
        """Return the step of the last complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Save a checkpoint.

        Args:
            step: Steps done, over all stages.
            state: A pytree of arrays.
            info: JSON values stored next to it.

        Raises:
            CheckpointError: It cannot be written.
        """
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_flatten(state)), info=ocp.args.JsonSave(info)
                ),
            )
        except jax.errors.JaxRuntimeError:  # a RuntimeError too, hence before the next clause
            raise  # another process failed, not the disk
        except (OSError, ValueError, RuntimeError) as error:
            raise self._error(f"the checkpoint of step {step} cannot be written", error) from error

    def restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        """Return the state and the info of a checkpoint.

        Args:
            step: Steps done, over all stages.
            template: A pytree with the structure, shapes, dtypes and shardings of the state.

        Raises:
            CheckpointError: It cannot be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _flatten(template))
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), info=ocp.args.JsonRestore()
                ),
            )
        except (OSError, ValueError, KeyError) as error:
            raise self._error(f"the checkpoint of step {step} cannot be read", error) from error
        leaves = [restored["state"][name] for name in _flatten(template)]
        return jax.tree.unflatten(jax.tree.structure(template), leaves), restored["info"]

    def close(self) -> None:
        """Wait for pending writes, and release the manager."""
        self._manager.close()

    def _error(self, problem: str, error: Exception) -> CheckpointError:
        is_open = hasattr(self, "_manager")
        latest = self.latest() if is_open else None
        resumable = f"the last complete one is of step {latest}" if latest else "there is none yet"
        reason = str(error).strip().split("\n")[0][:300]
        return CheckpointError(
            f"{problem}: {reason}",
            rule="the folder must be writable and have free space"
            + (", and all processes must be alive" if jax.process_count() > 1 else ""),
            location=str(self.folder),
            remedy="free disk space and use --resume" + (f": {resumable}" if is_open else ""),
        )


def _flatten(state: Any) -> dict[str, Any]:
    """Return the leaves of a pytree by path, in order.

    A checkpoint of a dict can be read without the classes of the state (optax, nnx, ours).
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
