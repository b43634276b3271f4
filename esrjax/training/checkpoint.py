"""The folder of a training run: resolved recipe, metrics and weights."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx

from esrjax import registry
from esrjax.errors import CheckpointError, NotFound, UnwritableFile
from esrjax.loading import abstract_network
from esrjax.method import Form
from esrjax.nn import checkpoint_io
from esrjax.nn.state_dict import KeyMap, load_state_dict, to_state_dict
from esrjax.training import recipe_loader
from esrjax.training.distributed import barrier, is_main_process
from esrjax.training.init_from import LoadedModel
from esrjax.training.recipe import Recipe, StageRun, to_json


@dataclass(frozen=True)
class RunDir:
    """The folder of a run; with several processes, only the main process writes.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path, recipe: Recipe, *, resume: bool) -> RunDir:
        """Create the folder with the resolved recipe, or open an existing one to resume.

        Args:
            path: The folder.
            recipe: The recipe. To resume, its `resume_key` must equal the stored one's, so that the
                resumed run trains the same weights as an uninterrupted one.
            resume: Whether to continue an existing run.

        Raises:
            UnwritableFile: There is a run, and `resume` is false.
            NotFound: There is none, and `resume` is true.
            CheckpointError: The run has another recipe.
            UnwritableFile: The folder cannot be written.
        """
        folder, stored = cls(path), read_recipe(path)
        if stored is not None and not resume:
            raise _run_exists(path)
        if stored is None and resume:
            raise _no_run(path)
        if stored is not None and stored.resume_key != recipe.resume_key:
            raise _recipe_mismatch(path, stored.resume_key, recipe.resume_key)
        barrier("the folder")  # no process writes before all of them have read
        if stored != recipe:
            folder._write("recipe.json", to_json(recipe))
        return folder

    def log_metrics(self, **metrics: Any) -> None:
        """Append one line of JSON to `metrics.jsonl`."""
        if not is_main_process():
            return
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def truncate_metrics(self, step: int) -> None:
        """Drop the metrics after `step`, over all stages: a resumed run logs them again."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            lines = [line for line in file.read_text().splitlines() if _step(line) <= step]
            self._write("metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def _write(self, name: str, text: str) -> None:
        """Write a file atomically."""
        if not is_main_process():
            return
        partial = self.path / f".{name}.partial"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            partial.write_text(text)
            os.replace(partial, self.path / name)
        except OSError as error:
            raise _unwritable(self.path, error) from error


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


def _run_exists(path: Path) -> UnwritableFile:
    return UnwritableFile(
        f"the folder already contains a run: {str(path)!r}",
        rule="every run has its own folder; nothing is overwritten",
        remedy="continue it with --resume, or choose another folder with -o",
    )


def _no_run(path: Path) -> NotFound:
    return NotFound(
        f"No run in {str(path)!r}",
        rule="a run to resume has a recipe.json in its folder",
        remedy="check the folder, or start a new run without --resume",
    )


def _recipe_mismatch(path: Path, stored: Recipe, recipe: Recipe) -> CheckpointError:
    differences = list(_differences(_as_json(stored), _as_json(recipe)))
    return CheckpointError(
        f"the run has another recipe: {'; '.join(differences[:5])}",
        rule="a run is resumed with its own recipe; only save_every, data.num_workers, "
        "data.cache_gib and data.crop_on may change",
        location=str(path / "recipe.json"),
        remedy="omit the recipe and pass only --resume and -o, or choose another folder",
    )


def _as_json(recipe: Recipe) -> Any:
    return json.loads(to_json(recipe))


def _differences(stored: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield `stage.0.steps: 100 in the run, 200 now` for every value that differs."""
    if isinstance(stored, Mapping) and isinstance(new, Mapping):
        for key in sorted({*stored, *new}):
            yield from _differences(stored.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(stored, list) and isinstance(new, list) and len(stored) == len(new):
        for index, pair in enumerate(zip(stored, new, strict=True)):
            yield from _differences(*pair, f"{path}.{index}")
    elif stored != new:
        yield f"{path}: {stored!r} in the run, {new!r} now"


def _unwritable(path: Path, error: OSError) -> UnwritableFile:
    return UnwritableFile(
        f"cannot write to the folder of the run: {error.strerror}",
        rule="the folder can be created, is writable and has free space",
        location=str(path),
        remedy="free disk space and continue with --resume, or choose another folder with -o",
    )


# --------------------------------------------------------------------------------------------------
# Training checkpoints, written atomically by Orbax.
# --------------------------------------------------------------------------------------------------


MAX_TO_KEEP = 3  # older checkpoints are deleted


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


# --------------------------------------------------------------------------------------------------
# Weights of finished stages and of the whole training, as safetensors files.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageArtifacts:
    """The weights of a run's finished stages, `stages/03-fine-tuning.safetensors`.

    With several processes the main process writes them, and the others wait.

    Attributes:
        folder: Folder of the run.
        recipe: The recipe.
    """

    folder: Path
    recipe: Recipe

    def has_finished(self, run: StageRun) -> bool:
        """Return whether the stage has finished."""
        return self._path(run).exists()

    def save(self, run: StageRun, model: LoadedModel) -> None:
        """Save the result of a stage; LoRA factors are saved as such, not merged into kernels.

        The file appears whole or not at all, and marks the stage as finished when a run resumes.
        """
        _write({self._path(run): model}, f"stage {run.name} of recipe {self.recipe.sha256}")

    def load(self, run: StageRun) -> LoadedModel:
        """Return the result of a stage."""
        checkpoint = checkpoint_io.read_checkpoint(self._path(run))
        metadata = checkpoint.metadata
        assert metadata is not None  # `save` wrote it
        method, lora = registry.get_method(metadata.method), run.stage.lora
        net = abstract_network(method, metadata.form, metadata.hparams)
        model = LoadedModel(
            method=metadata.method, net=net, form=metadata.form, hparams=metadata.hparams, lora=lora
        )
        if lora is not None:
            net = nnx.eval_shape(lambda net: replace(model, net=net).with_lora(lora).net, net)
        key_map = KeyMap(method.torch_names)
        return replace(
            model,
            net=load_state_dict(net, checkpoint.state_dict, key_map, location=str(self.folder)),
        )

    def export(self, model: LoadedModel) -> tuple[Path, ...]:
        """Save the final weights in each form of the network, and return the files."""
        merged = model.without_lora()
        forms: dict[Form, LoadedModel] = {merged.form: merged, "deploy": merged.to_deploy_form()}
        files = {
            self.folder / f"{form}.safetensors": form_model for form, form_model in forms.items()
        }
        _write(files, f"recipe {self.recipe.sha256}")
        return tuple(files)

    def _path(self, run: StageRun) -> Path:
        slug = re.sub(r"[^a-z0-9]+", "-", run.name.lower()).strip("-")
        return self.folder / "stages" / f"{run.index:02d}-{slug}.safetensors"


def latest_run(runs: Sequence[StageRun], index: int, name: str | None) -> StageRun:
    """Return the last run before `index`, of the stage of that name, or of any if it is None.

    There is one: a recipe is refused when it is read if it refers to any but an earlier stage.
    """
    earlier = [run for run in runs[:index] if name in (None, run.stage.name)]
    return earlier[-1]


def _write(files: Mapping[Path, LoadedModel], note: str) -> None:
    if is_main_process():
        for path, model in files.items():
            _write_one(path, model, note)
    barrier(note)  # no process reads the files before they are complete


def _write_one(path: Path, model: LoadedModel, note: str) -> None:
    method = registry.get_method(model.method)
    metadata = checkpoint_io.make_metadata(
        model.method, method, model.form, model.hparams, note=note
    )
    try:
        checkpoint_io.write_safetensors(
            path, to_state_dict(model.net, KeyMap(method.torch_names)), metadata
        )
    except UnwritableFile as error:
        raise UnwritableFile(
            error.problem,
            rule=error.rule,
            location=error.location,
            remedy="free disk space and use --resume: the last checkpoint has these weights",
        ) from error
