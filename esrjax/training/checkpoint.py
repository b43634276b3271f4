"""The files of a run: its folder with recipe and metrics, checkpoints, and weights of stages.

With several processes, the main process writes the recipe, the metrics and the weights; all of them
take part in checkpoints. Checkpoints are written atomically by Orbax, the weights of finished
stages and of the whole training as safetensors files.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from esrjax import registry
from esrjax.errors import CheckpointError, NotFound, UnwritableFile, list_some
from esrjax.io import atomic_write
from esrjax.loading import abstract_network
from esrjax.nn import checkpoint_io
from esrjax.nn.state_dict import KeyMap, load_state_dict, to_state_dict
from esrjax.training import recipe_loader, run_data
from esrjax.training.distributed import barrier, is_main_process
from esrjax.training.init_from import LoadedModel
from esrjax.training.recipe import Recipe, StageRun, to_json

MAX_TO_KEEP = 3  # older checkpoints are deleted
_REMEDY = "free disk space and continue with --resume, or choose another folder with -o"


# --- folder ---


@dataclass(frozen=True)
class RunDir:
    """The folder of a run: its recipe, metrics, and the weights of its finished stages.

    With several processes, only the main process writes. The result of a stage is a file such as
    `stages/03-fine-tuning.safetensors`.

    Attributes:
        path: The folder.
        recipe: The recipe.
    """

    path: Path
    recipe: Recipe

    @classmethod
    def open(
        cls, path: Path, recipe: Recipe, *, resume: bool, data: run_data.DataSummaries
    ) -> RunDir:
        """Create the folder with the resolved recipe, or open an existing one to resume.

        Args:
            path: The folder.
            recipe: The recipe. To resume, its `resume_key` must equal the stored one's, so that the
                resumed run trains the same weights as an uninterrupted one.
            resume: Whether to continue an existing run.
            data: The images that the run is trained on; to resume, they must be the stored ones.

        Raises:
            UnwritableFile: There is a run and `resume` is false, or the folder cannot be written.
            NotFound: There is none, and `resume` is true.
            CheckpointError: The run has another recipe, or its images have changed.
        """
        folder, stored = cls(path, recipe), read_recipe(path)
        if stored is not None and not resume:
            raise UnwritableFile(
                f"the folder already contains a run: {str(path)!r}",
                rule="every run has its own folder; nothing is overwritten",
                remedy="continue it with --resume, or choose another folder with -o",
            )
        if stored is None and resume:
            raise NotFound(
                f"No run in {str(path)!r}",
                rule="a run to resume has a recipe.json in its folder",
                remedy="check the folder, or start a new run without --resume",
            )
        if stored is not None:
            run_data.check_unchanged(path, data)
        if stored is not None and stored.resume_key != recipe.resume_key:
            raise _recipe_mismatch(path, stored.resume_key, recipe.resume_key)
        barrier("the folder")  # no process writes before all of them have read
        if stored != recipe:
            folder._write_text("recipe.json", to_json(recipe))
        folder._write_text(run_data.FILE_NAME, run_data.to_json(data))
        return folder

    def log_metrics(self, **metrics: Any) -> None:
        """Append one line of JSON to `metrics.jsonl`."""
        if not is_main_process():
            return
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise UnwritableFile(
                f"cannot write the metrics of the run: {error.strerror}",
                rule="the folder is writable and has free space",
                location=str(self.path),
                remedy=_REMEDY,
            ) from error

    def truncate_metrics(self, step: int) -> None:
        """Drop the metrics after `step`, over all stages: a resumed run logs them again."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            lines = [line for line in file.read_text().splitlines() if _step(line) <= step]
            self._write_text("metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def has_finished(self, run: StageRun) -> bool:
        """Return whether the stage has finished."""
        return self._stage_file(run).exists()

    def save(self, run: StageRun, model: LoadedModel) -> None:
        """Save the result of a stage; LoRA factors are saved as such, not merged into kernels.

        The file appears whole or not at all, and marks the stage as finished when a run resumes.
        """
        note = f"stage {run.name} of recipe {self.recipe.sha256}"
        _write_weights({self._stage_file(run): model}, note)

    def load(self, run: StageRun) -> LoadedModel:
        """Return the result of a stage."""
        checkpoint = checkpoint_io.read_checkpoint(self._stage_file(run))
        metadata = checkpoint.metadata
        assert metadata is not None  # `save` wrote it
        method = registry.get_method(metadata.method)
        form, hparams = metadata.form, metadata.hparams
        net = abstract_network(method, form, hparams)
        model = LoadedModel(method=metadata.method, net=net, form=form, hparams=hparams)
        model = model.with_lora(run.stage.lora) if run.stage.lora else model
        key_map, location = KeyMap(method.torch_names), str(self.path)
        net = load_state_dict(model.net, checkpoint.state_dict, key_map, location=location)
        return replace(model, net=net)

    def export(self, model: LoadedModel) -> tuple[Path, ...]:
        """Save the final weights in each form of the network, and return the files."""
        merged = model.without_lora()
        models = {merged.form: merged, "deploy": merged.to_deploy_form()}
        files = {self.path / f"{form}.safetensors": model for form, model in models.items()}
        _write_weights(files, f"recipe {self.recipe.sha256}")
        return tuple(files)

    def _stage_file(self, run: StageRun) -> Path:
        slug = re.sub(r"[^a-z0-9]+", "-", run.name.lower()).strip("-")
        return self.path / "stages" / f"{run.index:02d}-{slug}.safetensors"

    def _write_text(self, name: str, text: str) -> None:
        if is_main_process():
            with atomic_write(self.path / name, _REMEDY) as partial:
                partial.write_text(text)


def read_recipe(path: Path) -> Recipe | None:
    """Return the recipe of the run in a folder, None if there is none."""
    file = path / "recipe.json"
    return recipe_loader.load(file) if file.is_file() else None


def _step(line: str) -> float:
    """Return the step of a line of metrics; infinity for a line that a kill truncated."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


def _recipe_mismatch(path: Path, stored: Recipe, recipe: Recipe) -> CheckpointError:
    old, new = (_flatten(json.loads(to_json(r)), _is_value) for r in (stored, recipe))
    differences = [
        f"{key}: {old.get(key)!r} in the run, {new.get(key)!r} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    return CheckpointError(
        f"the run has another recipe: {list_some(differences, 5, '; ')}",
        rule="a run is resumed with its own recipe; only save_every, data.num_workers, "
        "data.cache_gib and data.crop_on may change",
        location=str(path / "recipe.json"),
        remedy="omit the recipe and pass only --resume and -o, or choose another folder",
    )


def _is_value(node: Any) -> bool:
    """Return whether a node of a recipe is one value: all but tables and lists of tables."""
    tables = node if isinstance(node, list) and node else [node]
    return not all(isinstance(table, Mapping) and table for table in tables)


def _write_weights(files: Mapping[Path, LoadedModel], note: str) -> None:
    for path, model in files.items() if is_main_process() else ():
        method = registry.get_method(model.method)
        state_dict = to_state_dict(model.net, KeyMap(method.torch_names))
        metadata = checkpoint_io.make_metadata(
            model.method, method, model.form, model.hparams, note=note
        )
        remedy = "free disk space and use --resume: the last checkpoint has these weights"
        checkpoint_io.write_safetensors(path, state_dict, metadata, remedy)
    barrier(note)  # no process reads the files before they are complete


# --- training checkpoints ---


class _Manager(ocp.CheckpointManager):
    """Checkpoint manager without signal handling, which `esrjax.training.distributed` does."""

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
        options = ocp.CheckpointManagerOptions(
            max_to_keep=MAX_TO_KEEP,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=False,  # so that `save` itself raises what fails
        )
        try:
            self._manager = _Manager(self.folder, options=options)
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
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_flatten(state)), info=ocp.args.JsonSave(info)
        )
        try:
            self._manager.save(step, args=args)
        except jax.errors.JaxRuntimeError:  # a RuntimeError too, hence before the next clause
            raise  # another process failed, not the disk
        except (OSError, ValueError, RuntimeError) as error:
            raise self._error(f"the checkpoint of step {step} cannot be written", error) from error

    def restore(self, step: int, template: Any) -> Any:
        """Return the state of a checkpoint.

        Args:
            step: Steps done, over all stages.
            template: A pytree with the structure, shapes, dtypes and shardings of the state.

        Raises:
            CheckpointError: It cannot be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _flatten(template))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        try:
            restored = self._manager.restore(step, args=args)
        except (OSError, ValueError, KeyError) as error:
            raise self._error(f"the checkpoint of step {step} cannot be read", error) from error
        # In the order of the template: `tree.map` sorts the keys of a dict.
        leaves = [restored["state"][name] for name in _flatten(template)]
        return jax.tree.unflatten(jax.tree.structure(template), leaves)

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


def _flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Return the leaves of a pytree by path, in order.

    A checkpoint of a dict can be read without the classes of the state (optax, nnx, ours).
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
