"""A submission put together: measured, weighed against the rules, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esrjax.bridge.delivery import Delivery, deliver
from esrjax.cli.judgement import Judgement
from esrjax.cli.plans import said, trained_on
from esrjax.cli.tables import progress
from esrjax.contest import submission
from esrjax.contest.factsheet import factsheet
from esrjax.contest.fairness import fairness
from esrjax.contest.gates import Split, gates
from esrjax.contest.rules import Rules
from esrjax.errors import UserError
from esrjax.model import Model
from esrjax.pictures.sets import Pair
from esrjax.training.recipe import Recipe


class UnwritableSubmission(UserError):
    """A place where no submission can be written."""


class NotAsPublished(UserError):
    """Weights that the official code of their method would not load."""


@dataclass(frozen=True, kw_only=True)
class Handover:
    """A model, the sets and rules it is measured by, and how it was trained."""

    model: Model
    number: int
    sets: Mapping[Split, Sequence[Pair]]
    rules: Rules
    recipe: Recipe | None

    @property
    def key(self) -> str:
        """As in the organisers' results.json."""
        return f"{self.number:02d}_{self.model.name}"

    def require_place(self, folder: Path) -> None:
        """Raise `UnwritableSubmission` unless `folder` can be made or is empty."""
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        empty = there != folder.absolute() or (there.is_dir() and not any(there.iterdir()))
        if not (empty and there.is_dir() and os.access(there, os.W_OK)):
            raise _unwritable(folder, "it is not empty" if not empty else "no folder can be made")

    def check(self) -> Judgement:
        """Scored and converted; nothing stays."""
        with tempfile.TemporaryDirectory() as beside:
            delivery = deliver(self.model, Path(beside) / self._weights)
        found = submission.scores(self.model, self.sets, self.rules, self._bar)
        means: dict[Split, tuple[float, int]] = {
            split: (held.mean.psnr, len(held.images)) for split, held in found.items()
        }
        return self._judged(means, delivery)

    def write(self, folder: Path) -> Judgement:
        """Weights, factsheet and results.json, put in place together."""
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
        try:
            judged = self._fill(beside)
            beside.chmod(0o755)
            os.replace(beside, folder)
        except OSError as error:
            raise _unwritable(folder, error.strerror or str(error)) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return replace(judged, written=folder)

    def _fill(self, folder: Path) -> Judgement:
        delivery = deliver(self.model, folder / self._weights)
        if delivery.departures:
            raise _not_as_published(delivery)
        result = submission.measure(self.model, self.sets, self.rules, self._bar)
        means: dict[Split, tuple[float, int]] = {
            split: (result.quality[split].psnr, len(pairs)) for split, pairs in self.sets.items()
        }
        judged = self._judged(means, delivery)
        made = submission.entry(result)
        (folder / "results.json").write_text(submission.results_json(self.key, made))
        text = factsheet(
            self.key, result, made, judged.gates, self._training(judged), self._said_of(delivery)
        )
        (folder / "factsheet.md").write_text(text)
        return judged

    @property
    def _weights(self) -> str:
        return f"team{self.key}.pth"

    def _bar(self, pairs: Sequence[Pair]) -> Any:
        return progress(pairs, self.key)

    def _judged(self, means: Mapping[Split, tuple[float, int]], delivery: Delivery) -> Judgement:
        names = None if self.recipe is None else trained_on(self.recipe)
        stages = self.recipe.stage if self.recipe else ()
        return Judgement(
            key=self.key,
            gates=gates(means, self.rules, self.model.method.team),
            trained_on=names,
            unfair=fairness(self.rules, [name.partition("[")[0] for name in names or ()]),
            files=list(dict.fromkeys(file for stage in stages for file in stage.files)),
            delivery=delivery,
        )

    def _training(self, judged: Judgement) -> list[str]:
        """The recipe in words, a line for each run of a stage."""
        if self.recipe is None:
            return [judged.fairness]
        runs = [_words(said(run)) for run in self.recipe.runs]
        return [judged.fairness, *runs, f"recipe sha256 {self.recipe.sha256}"]

    def _said_of(self, delivery: Delivery) -> list[str]:
        return [
            f"`{self._weights}`, sha256 {delivery.sha256}, {delivery.form} form",
            f"made from weights with sha256 {self.model.checkpoint.sha256}",
            delivery.words,
        ]


def _words(told: Mapping[str, Any]) -> str:
    """`first: start new, length 12, batch 2, ...`."""
    run, *rest = told.items()
    return f"{run[1]}: " + ", ".join(f"{key} {value}" for key, value in rest if value)


def _not_as_published(delivery: Delivery) -> NotAsPublished:
    return NotAsPublished(
        f"the weights are {delivery.words}",
        rule="the official code loads keys, shapes and types strictly",
        remedy="submit weights of the published sizes and form",
    )


def _unwritable(folder: Path, why: str) -> UnwritableSubmission:
    return UnwritableSubmission(
        f"the submission cannot be written: {why}",
        rule="a submission is a new or empty folder, written whole or not at all",
        place=str(folder),
        remedy="name another folder with -o",
    )
