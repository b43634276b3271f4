"""What the stages of a training have left, on disk: weights in files of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flax import nnx

from esrjax import registry
from esrjax.method import Form
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.weights import load, tensors
from esrjax.recognition import template
from esrjax.training.cluster import leads, together
from esrjax.training.origin import Held
from esrjax.training.recipe import Recipe, Run


@dataclass(frozen=True)
class Outcomes:
    """The files of a run's finished stages, `stages/03-fine-tuning.safetensors`.

    Of several processes the first writes them, and the others wait.
    """

    folder: Path
    recipe: Recipe

    def has(self, run: Run) -> bool:
        """Whether the stage has ended."""
        return self._file(run).exists()

    def save(self, run: Run, held: Held) -> None:
        """Write what the stage has left, adapters apart from the kernels that they move."""
        _write({self._file(run): held}, f"stage {run.name} of recipe {self.recipe.sha256}")

    def load(self, run: Run) -> Held:
        """What the stage has left."""
        checkpoint = archive.read(self._file(run))
        said = checkpoint.manifest
        assert said is not None  # `save` wrote it
        method, lora = registry.plain(said.method), run.stage.lora
        net = template(method, said.form, said.sizes)
        held = Held(method=said.method, net=net, form=said.form, sizes=said.sizes, lora=lora)
        if lora is not None:
            net = nnx.eval_shape(lambda net: replace(held, net=net).adapted(lora).net, net)
        names = Naming(method.torch_names)
        return replace(held, net=load(net, checkpoint.tensors, names, place=str(self.folder)))

    def publish(self, held: Held) -> tuple[Path, ...]:
        """Write the weights of the whole training, in each form that they have."""
        plain = held.merged()
        forms: dict[Form, Held] = {plain.form: plain, "deploy": plain.deployed()}
        files = {self.folder / f"{form}.safetensors": each for form, each in forms.items()}
        _write(files, f"recipe {self.recipe.sha256}")
        return tuple(files)

    def _file(self, run: Run) -> Path:
        slug = re.sub(r"[^a-z0-9]+", "-", run.name.lower()).strip("-")
        return self.folder / "stages" / f"{run.index:02d}-{slug}.safetensors"


def named(runs: Sequence[Run], before: int, name: str | None) -> Run:
    """The last run of a stage of that name, or of any, before the run of that index."""
    earlier = [run for run in runs[:before] if name in (None, run.stage.name)]
    return earlier[-1]


def _write(files: Mapping[Path, Held], note: str) -> None:
    if leads():
        for path, held in files.items():
            _write_one(path, held, note)
    together(note)


def _write_one(path: Path, held: Held, note: str) -> None:
    method = registry.plain(held.method)
    said = archive.describe(held.method, method, held.form, held.sizes, note=note)
    try:
        archive.write_safetensors(path, tensors(held.net, Naming(method.torch_names)), said)
    except archive.UnwritableCheckpoint as error:
        raise archive.UnwritableCheckpoint(
            error.problem,
            rule=error.rule,
            place=error.place,
            remedy="make room and go on with --resume: the last checkpoint has all that is in it",
        ) from error
