"""The files of a run: its folder with recipe and metrics, checkpoints, and weights of stages.

With several processes, the main process writes the recipe, the metrics and the weights; all of them
take part in checkpoints. Every file and folder appears whole or not at all. What is read back is
checked: checkpoints hold the SHA-256 of their files, results of stages that of their tensors, and a
damaged one is passed over, never restored.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from pydantic import TypeAdapter

from esrjax import registry
from esrjax.errors import (
    CheckpointError,
    NotFound,
    UnwritableFile,
    UserError,
    error_summary,
    list_some,
    log_note,
)
from esrjax.io import (
    check_writable,
    clear_leftovers,
    commit,
    remove,
    sha256_file,
    write_bytes,
)
from esrjax.loading import abstract_network
from esrjax.nn import checkpoint_io
from esrjax.nn.quantization import quantize_as
from esrjax.nn.state_dict import KeyMap, load_state_dict, to_state_dict
from esrjax.training import recipe_loader, run_data
from esrjax.training.distributed import all_agree, barrier, is_main_process
from esrjax.training.init_from import LoadedModel
from esrjax.training.logging import Throughput
from esrjax.training.recipe import Recipe, StageRun, StageWeights, to_json

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
        """Return the folder of a new run, or of an existing one to resume; nothing is written.

        A run without a step (nothing was trained, saved or logged) may be started anew.

        Args:
            path: The folder.
            recipe: The recipe. To resume, its `resume_key` must equal the stored one's, so that the
                resumed run trains the same weights as an uninterrupted one.
            resume: Whether to continue an existing run.
            data: The images that the run is trained on; to resume, they must be the stored ones.

        Raises:
            UnwritableFile: There is a run and `resume` is false.
            NotFound: There is none, and `resume` is true.
            CheckpointError: The run has another recipe, or its images have changed.
        """
        if not resume:
            if has_steps(path):
                raise UnwritableFile(
                    f"the folder already contains a run: {str(path)!r}",
                    rule="every run has its own folder; nothing is overwritten",
                    remedy="continue it with --resume, or choose another folder with -o",
                )
            return cls(path, recipe)
        if not (has_steps(path) or (path / "recipe.json").exists()):
            raise NotFound(
                f"No run in {str(path)!r}",
                rule="a run to resume has a recipe.json in its folder",
                remedy="check the folder, or start a new run without --resume",
            )
        run_data.check_unchanged(path, data)
        try:
            stored = recipe_loader.load(path / "recipe.json")
        except UserError as error:  # checkpoints and results name the recipe that they are of
            log_note(f"{error.problem}; the recipe of the command is used, and replaces it")
        else:
            if stored.resume_key != recipe.resume_key:
                raise _recipe_mismatch(path, stored.resume_key, recipe.resume_key)
        return cls(path, recipe)

    def write_start(self, data: run_data.DataSummaries, steps: range) -> None:
        """Write what is written before a step: recipe and data; drop the metrics of `steps`.

        Args:
            data: The images that the run is trained on.
            steps: What is left of a stage, over all stages, and will be logged again.

        Raises:
            UnwritableFile: The folder cannot be written to.
        """
        barrier("the folder")  # no process writes before all of them have read
        if is_main_process():
            for folder in (self.path, self.path / "stages", self.path / "checkpoints"):
                clear_leftovers(folder)  # of a process that was killed
        self._write("recipe.json", to_json(self.recipe).encode())
        self._write(run_data.FILE_NAME, run_data.to_json(data).encode())
        try:
            metrics = (self.path / "metrics.jsonl").read_bytes()
        except OSError:  # none yet, or not a file: `log_metrics` says so
            return
        lines = metrics.splitlines()
        kept = [x for x in lines if _step(x) < steps.start or steps.stop <= _step(x) < inf]
        damaged = sum(_step(line) == inf for line in lines[:-1])  # a kill cuts the last
        if damaged and is_main_process():
            log_note(f"{self.path}/metrics.jsonl: {damaged} damaged lines are dropped")
        if (content := b"".join(line + b"\n" for line in kept)) != metrics:
            self._write("metrics.jsonl", content)

    def log_metrics(self, **metrics: Any) -> None:
        """Append one line of JSON to `metrics.jsonl`; a training goes on where it cannot."""
        if not is_main_process():
            return
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            log_note(f"metrics are not logged: {self.path}/metrics.jsonl: {error.strerror}")

    def has_finished(self, run: StageRun) -> bool:
        """Return whether the stage has finished, with a result that can be read."""
        path = self._stage_file(run)
        if not path.exists():
            return False
        try:
            self.load(run)
            if self.recipe.needs_raw_weights(run.stage):
                self.load(run, "raw")
        except UserError as error:
            log_note(f"{path}: {error.problem}; stage {run.name!r} is finished again")
            return False
        return True

    def save(self, run: StageRun, model: LoadedModel, raw: LoadedModel | None = None) -> None:
        """Save the result of a stage; LoRA factors are saved as such, not merged into kernels.

        The file appears whole or not at all, and marks the stage as finished when a run resumes.

        Args:
            run: The stage run.
            model: Its result.
            raw: The network after its last step, if a later stage starts from it.
        """
        files = {self._stage_file(run): model}
        if raw is not None:  # first: the result marks the stage as finished
            files = {self._stage_file(run, "raw"): raw} | files
        _write_weights(files, self._stage_note(run))

    def load(self, run: StageRun, weights: StageWeights = "ema", /) -> LoadedModel:
        """Return the result of a stage, or the network after its last step ("raw").

        Raises:
            UserError: The file cannot be read, is damaged, or is of another stage or recipe.
        """
        path = self._stage_file(run, weights)
        checkpoint = checkpoint_io.read_checkpoint(path)
        metadata = checkpoint.metadata
        if metadata is None or metadata.note != self._stage_note(run):
            raise _damaged(path, f"it is not the result of {self._stage_note(run)}")
        if metadata.tensors_sha256 != checkpoint_io.hash_tensors(checkpoint.state_dict):
            raise _damaged(path, "its tensors have changed")
        method = registry.get_method(metadata.method)
        form, hparams = metadata.form, metadata.hparams
        net = abstract_network(method, form, hparams)
        model = LoadedModel(method=metadata.method, net=net, form=form, hparams=hparams)
        model = model.with_lora(run.stage.lora) if run.stage.lora else model
        key_map, location = KeyMap(method.torch_names), str(self.path)
        net = quantize_as(model.net, checkpoint.state_dict, key_map)
        net = load_state_dict(net, checkpoint.state_dict, key_map, location=location)
        return replace(model, net=net)

    def export(self, model: LoadedModel) -> tuple[Path, ...]:
        """Save the final weights in each form of the network, and return the files."""
        merged = model.without_lora()
        models = {merged.form: merged, "deploy": merged.to_deploy_form()}
        files = {self.path / f"{form}.safetensors": model for form, model in models.items()}
        _write_weights(files, f"recipe {self.recipe.sha256}")
        return tuple(files)

    def check_outputs(self) -> None:
        """Raise `UnwritableFile` if the weights of a stage or of the training cannot be written."""
        weights = [self.path / f"{form}.safetensors" for form in ("train", "deploy")]
        for path in (*map(self._stage_file, self.recipe.runs), *weights):
            check_writable(path, "delete it, or choose another folder with -o")

    def _stage_file(self, run: StageRun, weights: StageWeights = "ema") -> Path:
        slug = re.sub(r"[^a-z0-9]+", "-", run.name.lower()).strip("-")
        ending = ".raw" * (weights == "raw")
        return self.path / "stages" / f"{run.index:02d}-{slug}{ending}.safetensors"

    def _stage_note(self, run: StageRun) -> str:
        return f"stage {run.name} of recipe {self.recipe.sha256}"

    def _write(self, name: str, data: bytes) -> None:
        if is_main_process():
            write_bytes(self.path / name, data, _REMEDY)


def read_recipe(path: Path) -> Recipe | None:
    """Return the recipe of the run in a folder, None if there is none."""
    file = path / "recipe.json"
    return recipe_loader.load(file) if file.is_file() else None


def has_steps(path: Path) -> bool:
    """Return whether a folder has steps of a run: a checkpoint, a result, weights or metrics."""
    files = [path / "metrics.jsonl", *path.glob("*.safetensors"), *path.glob("stages/*")]
    is_logged = any(file.is_file() and file.stat().st_size for file in files)
    return is_logged or bool(Checkpointer(path).steps())


def _step(line: bytes) -> float:
    """Return the step of a line of metrics; infinity for a damaged line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return inf


def _damaged(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        problem,
        rule="the result of a stage is the file that the run has written",
        location=str(path),
        remedy="delete it: with --resume the stage is finished again",
    )


def _recipe_mismatch(path: Path, stored: Recipe, recipe: Recipe) -> CheckpointError:
    old, new = (_flatten(json.loads(to_json(r)), _is_value) for r in (stored, recipe))
    differences = [
        f"{key}: {old.get(key)!r} in the run, {new.get(key)!r} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]
    return CheckpointError(
        f"the run has another recipe: {list_some(differences, 5, '; ')}",
        rule="a run is resumed with its own recipe; only parallel, save_every, data.num_workers, "
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
            model.method,
            method,
            model.form,
            model.hparams,
            note=note,
            tensors_sha256=checkpoint_io.hash_tensors(state_dict),
        )
        remedy = "free disk space and use --resume: the last checkpoint has these weights"
        checkpoint_io.write_safetensors(path, state_dict, metadata, remedy)
    barrier(note)  # no process reads the files before they are complete


# --- training checkpoints ---


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """What a checkpoint says of its state.

    Attributes:
        recipe: `Recipe.sha256` of the run.
        stage: Name of the stage run.
        step: Steps done, over all stages.
        unreported: What was measured since the last report, if a report of this step is due: the
            training ended before it was made.
        arrays: Type and shape of every array, by its path in the state; Orbax would cast silently.
        files: SHA-256 of every file of the checkpoint, by its path in the folder.
    """

    recipe: str
    stage: str
    step: int = 0
    unreported: Throughput | None = None
    arrays: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, str] = field(default_factory=dict[str, str])


_INFO = TypeAdapter(CheckpointInfo)


class Checkpointer:
    """The training checkpoints of a run, by step over all stages; Orbax writes and reads them.

    All processes take part in saving and restoring.

    Args:
        folder: Folder of the run; the checkpoints are stored in `checkpoints/`.
    """

    def __init__(self, folder: Path):
        for name in ("absl", "asyncio"):  # errors of Orbax are raised as UserError
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.folder = folder.absolute() / "checkpoints"
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def steps(self) -> list[int]:
        """Return the steps of which there is a checkpoint, whole or damaged, in order."""
        names = (path.name for path in self.folder.glob("*"))
        return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d{0,11}", name))

    def latest(self) -> int | None:
        """Return the step of the newest checkpoint, whole or damaged, None if there is none."""
        return max(self.steps(), default=None)

    def save(self, step: int, state: Any, info: CheckpointInfo) -> None:
        """Save a checkpoint, and delete all but `MAX_TO_KEEP` of those up to this step.

        It appears whole or not at all, and is on the disk when this returns.

        Args:
            step: Steps done, over all stages.
            state: A pytree of arrays.
            info: What is stored next to it.

        Raises:
            CheckpointError: It cannot be written.
        """
        path, partial = self.folder / str(step), self.folder / f".{step}.partial"
        try:
            if is_main_process():
                self.folder.mkdir(parents=True, exist_ok=True)
                clear_leftovers(self.folder)
            barrier("leftovers")
            with _muted_callbacks():
                self._orbax.save(partial, args=ocp.args.StandardSave(_flatten(state)))
            if is_main_process():
                _write_info(partial, replace(info, step=step, arrays=_types(state)))
                remove(path)  # a damaged one
                commit(partial, path)
                for old in [old for old in self.steps() if old <= step][:-MAX_TO_KEEP]:
                    with suppress(OSError):  # it is tried again after the next checkpoint
                        remove(self.folder / str(old))
            barrier("checkpoint")
        except jax.errors.JaxRuntimeError:  # a RuntimeError too, hence before the next clause
            raise  # another process failed, not the disk
        except (OSError, ValueError, RuntimeError) as error:
            clear_leftovers(self.folder)
            reason = str(error).strip().split("\n")[0][:300]
            raise CheckpointError(
                f"the checkpoint of step {step} cannot be written: {reason}",
                rule="the folder must be writable and have free space"
                + (", and all processes must be alive" if jax.process_count() > 1 else ""),
                location=str(self.folder),
                remedy="free disk space",
            ) from error

    def restore(
        self, template: Any, info: CheckpointInfo, steps: range
    ) -> tuple[int, Any, CheckpointInfo] | None:
        """Return step, state and info of the newest whole checkpoint; None if there is none.

        One that is damaged, or of another stage or recipe, is passed over with a note.

        Args:
            template: A pytree with the structure, shapes, dtypes and shardings of the state.
            info: Recipe and stage that the checkpoint must be of.
            steps: The steps, over all stages, that are looked for.

        Raises:
            CheckpointError: A checkpoint may not be read.
        """
        for step in reversed([step for step in self.steps() if step in steps]):
            path = self.folder / str(step)
            result, reason = None, ""
            try:
                expected = replace(info, step=step, arrays=_types(template))
                result = self._read(path, template, expected)
            except jax.errors.JaxRuntimeError:
                raise
            except PermissionError as error:  # not damaged: nothing is trained anew for that
                raise CheckpointError(
                    "no permission to read a checkpoint",
                    rule="the user who resumes a run may read its files",
                    location=error.filename,
                    remedy="change the permissions, or delete the checkpoint",
                ) from error
            except Exception as error:  # Orbax and its libraries raise almost anything
                reason = error_summary(error)[:300]
            if all_agree(result is not None):
                assert result is not None
                return step, *result
            log_note(f"checkpoint {path} is passed over: {reason}; it can be deleted")
        return None

    def _read(self, path: Path, template: Any, info: CheckpointInfo) -> tuple[Any, CheckpointInfo]:
        stored = _read_info(path)
        for key in ("recipe", "stage", "step", "arrays"):
            if (value := getattr(stored, key)) != getattr(info, key):
                raise ValueError(f"it is of {key} {value!r}"[:300])
        leaves = _flatten(template)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, leaves)
        arrays = self._orbax.restore(path, args=ocp.args.StandardRestore(abstract))
        for name, leaf in leaves.items():
            shards = [shard.data for shard in arrays[name].addressable_shards]
            is_float = jnp.issubdtype(leaf.dtype, jnp.inexact)
            if is_float and any(np.isnan(shard).any() for shard in shards):
                raise ValueError(f"{name} has NaN")
        # In the order of the template: `tree.map` sorts the keys of a dict.
        return jax.tree.unflatten(jax.tree.structure(template), map(arrays.get, leaves)), stored


def _types(state: Any) -> dict[str, str]:
    return {name: f"{leaf.dtype} {leaf.shape}" for name, leaf in _flatten(state).items()}


def _write_info(folder: Path, info: CheckpointInfo) -> None:
    """Write `checkpoint.json`: a line with the info and the hashes of all files, and its hash."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    hashes = {str(path.relative_to(folder)): sha256_file(path) for path in files}
    line = _INFO.dump_json(replace(info, files=hashes)).decode()
    (folder / "checkpoint.json").write_text(f"{line}\n{_sha256(line)}\n")


def _read_info(folder: Path) -> CheckpointInfo:
    """Return what a checkpoint says; raise any exception if it, or another file, is damaged."""
    line, line_sha256 = (folder / "checkpoint.json").read_text().splitlines()
    if _sha256(line) != line_sha256:
        raise ValueError("checkpoint.json has changed")
    info = _INFO.validate_json(line)
    for name, sha256 in info.files.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != sha256:
            raise ValueError(f"{name} is missing or has changed")
    return info


def _sha256(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()


@contextmanager
def _muted_callbacks() -> Generator[None]:
    """Drop the tracebacks that Orbax's pending writes print once one has failed.

    It closes its event loop under them, so that their callbacks raise where nobody can catch it.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    except Exception:
        gc.collect()
        time.sleep(0.5)
        raise
    finally:
        sys.unraisablehook = hook


def _flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Return the leaves of a pytree by path, in order.

    A checkpoint of a dict can be read without the classes of the state (optax, nnx, ours).
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
