"""Weights of finished stages and of the whole training, as safetensors files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flax import nnx

from esrjax import registry
from esrjax.method import Form
from esrjax.network import archive
from esrjax.network.naming import KeyMap
from esrjax.network.weights import load_state_dict, to_state_dict
from esrjax.recognition import abstract_network
from esrjax.training.cluster import barrier, is_main_process
from esrjax.training.origin import LoadedModel
from esrjax.training.recipe import Recipe, StageRun


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
        checkpoint = archive.read_checkpoint(self._path(run))
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
    metadata = archive.make_metadata(model.method, method, model.form, model.hparams, note=note)
    try:
        archive.write_safetensors(
            path, to_state_dict(model.net, KeyMap(method.torch_names)), metadata
        )
    except archive.UnwritableCheckpoint as error:
        raise archive.UnwritableCheckpoint(
            error.problem,
            rule=error.rule,
            location=error.location,
            remedy="free disk space and use --resume: the last checkpoint has these weights",
        ) from error
