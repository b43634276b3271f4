"""Builder of challenge submissions, and its report: PSNR thresholds, data policy, state dict."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esrjax.challenge import submission
from esrjax.challenge.rules import Rules
from esrjax.challenge.submission import Images, Split, ThresholdCheck, threshold_text
from esrjax.cli.dry_run import policy_violations, stage_summary, training_datasets
from esrjax.cli.output import print_notes, progress_bar
from esrjax.data.datasets import Pair, has_hr, lr_source
from esrjax.errors import SubmissionError, UnwritableFile
from esrjax.inference import Model
from esrjax.interop.convert import ExportedCheckpoint, export_official
from esrjax.io import atomic_write
from esrjax.training.recipe import Recipe, StageRun

Means = Mapping[Split, tuple[float, int]]  # mean PSNR in dB, and the number of images


@dataclass(frozen=True, kw_only=True)
class SubmissionReport:
    """Whether a challenge would accept a submission.

    Attributes:
        key: The submission's key in results.json, such as `22_spanv2`.
        threshold_checks: The PSNR on each split against the threshold of the challenge.
        lr_sources: Where the LR images of each split come from.
        trained_on: The training datasets; None where no recipe is known.
        policy_violations: A line for each training dataset that the rules forbid.
        files: Weights that the recipe takes from outside: initial weights and teachers.
        state_dict: The exported checkpoint, compared with the published one.
        output: The folder of the submission; None if nothing was written.
    """

    key: str
    threshold_checks: Sequence[ThresholdCheck]
    lr_sources: Mapping[Split, str]
    trained_on: Sequence[str] | None
    policy_violations: Sequence[str]
    files: Sequence[str]
    state_dict: ExportedCheckpoint
    output: Path | None = None

    @property
    def failures(self) -> list[str]:
        """The reasons for which the submission would be rejected."""
        causes = {"data policy": self.policy_violations, "state dict": self.state_dict.mismatches}
        return self._splits("fails") + [name for name, lines in causes.items() if lines]

    @property
    def undetermined(self) -> list[str]:
        """The checks that could not be made with the given datasets and recipe."""
        checked = {check.split for check in self.threshold_checks}
        without_hr = [f"PSNR on {split}" for split in self.lr_sources if split not in checked]
        unknown_data = ["data policy"] * (self.trained_on is None)
        return self._splits("not checked") + without_hr + unknown_data

    def _splits(self, outcome: str) -> list[str]:
        return [f"PSNR on {c.split}" for c in self.threshold_checks if c.outcome == outcome]

    @property
    def data_policy(self) -> str:
        """The training datasets, with violations of the data policy, in one line."""
        if self.trained_on is None:
            return "unknown: there is no recipe of these weights"
        datasets = f"trained on {', '.join(self.trained_on)}"
        violations = [f"not allowed: {line}" for line in self.policy_violations]
        files = [f"also uses {file}, whose training data is unknown" for file in self.files]
        return "; ".join([datasets, *violations, *files])

    def text(self) -> str:
        """Return one line for each check, and the result."""
        result = f"rejected for {', '.join(self.failures)}" if self.failures else "no failures"
        if self.undetermined:
            result += f"; undetermined: {', '.join(self.undetermined)}"
        lines = [
            self.key,
            *(f"{c.split:<14} {c.psnr:.4f} dB, {threshold_text(c)}" for c in self.threshold_checks),
            f"training data  {self.data_policy}",
            f"state dict     {self.state_dict.summary}",
            f"result         {result}",
        ]
        return "\n".join(lines + ([f"written        {self.output}"] if self.output else []))

    def as_dict(self) -> dict[str, Any]:
        """Return the report by key, for `print_json`."""
        properties = ("rounded_margin_mdb", "unrounded_margin_mdb", "outcome")
        return {
            **vars(self),
            "threshold_checks": [
                {**vars(check), **{name: getattr(check, name) for name in properties}}
                for check in self.threshold_checks
            ],
            "failures": self.failures,
            "undetermined": self.undetermined,
        }


@dataclass(frozen=True, kw_only=True)
class SubmissionBuilder:
    """Builds or checks the submission of a model: weights, factsheet and results.json.

    Attributes:
        model: The network with its weights.
        number: The model's number in the challenge.
        images: The image pairs of the validation and the test dataset; LR images can be checked
            without HR, but for the PSNR.
        rules: The rules of the challenge.
        recipe: How the model was trained; None where it is unknown.
    """

    model: Model
    number: int
    images: Mapping[Split, Images]
    rules: Rules
    recipe: Recipe | None

    @property
    def key(self) -> str:
        """The submission's key in the organisers' results.json."""
        return f"{self.number:02d}_{self.model.name}"

    def check(self) -> SubmissionReport:
        """Score and export the model without keeping any file."""
        with tempfile.TemporaryDirectory() as temporary:
            exported = export_official(self.model, Path(temporary) / self._weights_name)
        bar = progress_bar(self.key)
        scores = submission.score_splits(self.model, self.images, self.rules, bar)
        for split, split_scores in scores.items():
            print_notes(split_scores.notes, f"{split}, ")
        means: Means = {split: (s.mean.psnr, len(s.images)) for split, s in scores.items()}
        return self._report(means, exported)

    def write(self, folder: Path) -> SubmissionReport:
        """Write weights, factsheet and results.json to `folder`, as a whole or not at all.

        Raises:
            UnwritableFile: The folder is not empty, or cannot be created.
            SubmissionError: The state dict differs from the official one, or a split has no HR.
        """
        pairs: dict[Split, Sequence[Pair]] = {
            split: images for split, images in self.images.items() if has_hr(images)
        }
        if without_hr := [split for split in self.images if split not in pairs]:
            raise SubmissionError(
                f"There are no HR images of {' and '.join(without_hr)}, only LR images",
                rule="results.json contains the PSNR on both splits",
                remedy="give datasets with HR images; `submit check` checks the rest without them",
            )
        _check_folder(folder)
        with atomic_write(folder, "name another folder with -o") as temporary:
            temporary.mkdir()
            report = self._write_files(temporary, pairs)
        return replace(report, output=folder)

    def _write_files(
        self, folder: Path, all_pairs: Mapping[Split, Sequence[Pair]]
    ) -> SubmissionReport:
        exported = export_official(self.model, folder / self._weights_name)
        if exported.mismatches:
            raise SubmissionError(
                f"The state dict does not match the official one: {exported.summary}",
                rule="the official code loads state dicts strictly: same keys, shapes and dtypes",
                remedy="submit weights of the published hyperparameters and form",
            )
        bar = progress_bar(self.key)
        result, scores = submission.measure_submission(self.model, all_pairs, self.rules, bar)
        for split, split_scores in scores.items():
            print_notes(split_scores.notes, f"{split}, ")
        means: Means = {s: (result.quality[s].psnr, len(pairs)) for s, pairs in all_pairs.items()}
        report, entry = self._report(means, exported), submission.results_entry(result)
        (folder / "results.json").write_text(submission.results_json(self.key, entry))
        training = [report.data_policy]
        if self.recipe is not None:
            training += [*map(_stage_line, self.recipe.runs), f"recipe sha256 {self.recipe.sha256}"]
        weights = [
            f"`{self._weights_name}`, sha256 {exported.sha256}, {exported.form} form",
            f"converted from weights with sha256 {self.model.checkpoint.sha256}",
            exported.summary,
        ]
        checks = report.threshold_checks
        sheet = submission.factsheet_markdown(self.key, result, entry, checks, training, weights)
        (folder / "factsheet.md").write_text(sheet)
        return report

    @property
    def _weights_name(self) -> str:
        return f"team{self.key}.pth"

    def _report(self, means: Means, exported: ExportedCheckpoint) -> SubmissionReport:
        recipe, team = self.recipe, self.model.method.team
        stages = recipe.stage if recipe else ()
        files = [file for stage in stages for file in stage.checkpoints.values()]
        return SubmissionReport(
            key=self.key,
            lr_sources={split: lr_source(images) for split, images in self.images.items()},
            threshold_checks=submission.threshold_checks(means, self.rules, team),
            trained_on=training_datasets(recipe) if recipe else None,
            policy_violations=policy_violations(recipe, self.rules) if recipe else (),
            files=list(dict.fromkeys(files)),
            state_dict=exported,
        )


def _stage_line(run: StageRun) -> str:
    """`first: init from scratch, length 12, batch size 2, ...`."""
    name, *items = stage_summary(run).items()
    return f"{name[1]}: " + ", ".join(f"{key} {value}" for key, value in items if value)


def _check_folder(folder: Path) -> None:
    """Raise `UnwritableFile` unless `folder` is empty or can be created."""
    path = folder.absolute()
    existing = next(p for p in (path, *path.parents) if p.exists())
    is_empty = existing != path or (existing.is_dir() and not any(existing.iterdir()))
    if not (is_empty and existing.is_dir() and os.access(existing, os.W_OK)):
        reason = "cannot create it" if is_empty else "it is not empty"
        raise UnwritableFile(
            f"Cannot write the submission: {reason}",
            rule="a submission needs a new or empty folder",
            location=str(folder),
            remedy="name another folder with -o",
        )
