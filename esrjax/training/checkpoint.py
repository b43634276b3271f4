"""The state of a training on disk: a checkpoint is there whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from esrjax.errors import UserError

KEPT = 3  # checkpoints; older ones are deleted


class CheckpointFailed(UserError):
    """A checkpoint could not be written or read."""


class _Manager(ocp.CheckpointManager):
    """Without a view of its own on signals: `esrjax.training.interruption` has one."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of a run, by its step over all stages; every process has a part in each."""

    def __init__(self, folder: Path):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails is raised, in words
        self.folder = folder.absolute() / "checkpoints"
        try:
            self._manager = _Manager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=KEPT, cleanup_tmp_directories=True, enable_async_checkpointing=False
                ),
            )
        except OSError as error:
            raise self._failed("no checkpoint can be kept", error) from error

    def latest(self) -> int | None:
        """The step of the last whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, facts: dict[str, Any]) -> None:
        """Write the state after `step` steps, and facts such as the recipe's sha256."""
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_named(state)), facts=ocp.args.JsonSave(facts)
                ),
            )
        except jax.errors.JaxRuntimeError:
            raise  # of another process, not of the disk
        except (OSError, ValueError, RuntimeError) as error:
            raise self._failed(f"the checkpoint of step {step} cannot be written", error) from error

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state and facts of that step; `like` has the shapes and shardings of the state."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _named(like))
        try:
            held = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), facts=ocp.args.JsonRestore()
                ),
            )
        except (OSError, ValueError, KeyError) as error:
            raise self._failed(f"the checkpoint of step {step} cannot be read", error) from error
        leaves = [held["state"][name] for name in _named(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), held["facts"]

    def close(self) -> None:
        """Finish what is being written."""
        self._manager.close()

    def _failed(self, problem: str, error: Exception) -> CheckpointFailed:
        known = hasattr(self, "_manager")
        last = self.latest() if known else None
        kept = f"the last whole checkpoint is of step {last}" if last else "there is none yet"
        said = str(error).strip().split("\n")[0][:300]
        return CheckpointFailed(
            f"{problem}: {said}",
            rule="the folder must be writable and have room"
            + (", and all processes must live" if jax.process_count() > 1 else ""),
            place=str(self.folder),
            remedy="make room and use --resume" + (f": {kept}" if known else ""),
        )


def _named(state: Any) -> dict[str, Any]:
    """The leaves of a state by their paths, in order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
