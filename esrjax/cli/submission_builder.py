"""The outcome of `submit build` and `submit check`: PSNR thresholds, data policy, state dict."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esrjax.challenge import submission
from esrjax.challenge.rules import Rules, data_policy_violations
from esrjax.challenge.submission import (
    Split,
    ThresholdCheck,
    factsheet_markdown,
    threshold_checks,
    threshold_text,
)
from esrjax.cli.dry_run import stage_summary, training_datasets
from esrjax.cli.output import progress
from esrjax.data.datasets import Pair
from esrjax.errors import SubmissionError, UnwritableFile
from esrjax.inference import Model
from esrjax.interop.convert import ExportedCheckpoint, export_official
from esrjax.training.recipe import Recipe

_NO_RECIPE = "unknown: there is no recipe of these weights"


@dataclass(frozen=True, kw_only=True)
class SubmissionReport:
    """Whether a challenge would accept a submission.

    Attributes:
        key: The submission's key in results.json, such as `22_spanv2`.
        threshold_checks: The PSNR on each split against the threshold of the challenge.
        trained_on: The training datasets; None where no recipe is known.
        policy_violations: A line for each training dataset that the rules forbid.
        files: Weights that the recipe takes from outside: initial weights and teachers.
        exported: The exported checkpoint, compared with the published one.
        output: The folder of the submission; None if nothing was written.
    """

    key: str
    threshold_checks: Sequence[ThresholdCheck]
    trained_on: Sequence[str] | None
    policy_violations: Sequence[str]
    files: Sequence[str]
    exported: ExportedCheckpoint
    output: Path | None = None

    @property
    def failures(self) -> list[str]:
        """The reasons for which the submission would be rejected."""
        failed = [f"PSNR on {c.split}" for c in self.threshold_checks if c.outcome == "fails"]
        failed += ["data policy"] * bool(self.policy_violations)
        return failed + ["state dict"] * bool(self.exported.mismatches)

    @property
    def undetermined(self) -> list[str]:
        """The checks that could not be made with the given datasets and recipe."""
        checks = [c for c in self.threshold_checks if c.outcome == "not checked"]
        splits = [f"PSNR on {check.split}" for check in checks]
        return splits + ["data policy"] * (self.trained_on is None)

    @property
    def data_policy(self) -> str:
        """The training datasets, with violations of the data policy, in one line."""
        if self.trained_on is None:
            return _NO_RECIPE
        datasets = f"trained on {', '.join(self.trained_on)}"
        violations = [f"not allowed: {line}" for line in self.policy_violations]
        files = [f"also uses {file}, whose training data is unknown" for file in self.files]
        return "; ".join([datasets, *violations, *files])

    def text(self) -> str:
        """Return one line for each check, and the result."""
        lines = [
            self.key,
            *(f"{c.split:<14} {c.psnr:.4f} dB, {threshold_text(c)}" for c in self.threshold_checks),
            f"training data  {self.data_policy}",
            f"state dict     {self.exported.summary}",
            f"result         {self._result()}",
        ]
        return "\n".join(lines + ([f"written        {self.output}"] if self.output else []))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        return {
            "key": self.key,
            "threshold_checks": [
                {
                    **vars(check),
                    "rounded_margin_mdb": check.rounded_margin_mdb,
                    "unrounded_margin_mdb": check.unrounded_margin_mdb,
                    "outcome": check.outcome,
                }
                for check in self.threshold_checks
            ],
            "trained_on": self.trained_on,
            "policy_violations": self.policy_violations,
            "files": self.files,
            "state_dict": vars(self.exported),
            "failures": self.failures,
            "undetermined": self.undetermined,
            "output": self.output and str(self.output),
        }

    def _result(self) -> str:
        result = f"rejected for {', '.join(self.failures)}" if self.failures else "no failures"
        return result + (
            f"; undetermined: {', '.join(self.undetermined)}" if self.undetermined else ""
        )


# --------------------------------------------------------------------------------------------------
# A submission: weights, factsheet and results.json, written as a whole or not at all.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SubmissionBuilder:
    """Builds or checks the submission of a model.

    Attributes:
        model: The network with its weights.
        number: The model's number in the challenge.
        pairs: The image pairs of the validation and the test dataset.
        rules: The rules of the challenge.
        recipe: How the model was trained; None where it is unknown.
    """

    model: Model
    number: int
    pairs: Mapping[Split, Sequence[Pair]]
    rules: Rules
    recipe: Recipe | None

    @property
    def key(self) -> str:
        """The submission's key in the organisers' results.json."""
        return f"{self.number:02d}_{self.model.name}"

    def check_folder(self, folder: Path) -> None:
        """Raise `UnwritableFile` unless `folder` is empty or can be created."""
        path = folder.absolute()
        existing = next(p for p in (path, *path.parents) if p.exists())
        is_empty = existing != path or (existing.is_dir() and not any(existing.iterdir()))
        if not (is_empty and existing.is_dir() and os.access(existing, os.W_OK)):
            raise _unwritable(folder, "it is not empty" if not is_empty else "cannot create it")

    def check(self) -> SubmissionReport:
        """Score and export the model without keeping any file."""
        with tempfile.TemporaryDirectory() as temporary:
            exported = export_official(self.model, Path(temporary) / self._weights_name)
        scores = submission.score_splits(self.model, self.pairs, self.rules, self._progress)
        means: dict[Split, tuple[float, int]] = {
            split: (score.mean.psnr, len(score.images)) for split, score in scores.items()
        }
        return self._report(means, exported)

    def write(self, folder: Path) -> SubmissionReport:
        """Write weights, factsheet and results.json to `folder`, all together."""
        parent = folder.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=parent))
        try:
            report = self._write_files(temporary)
            temporary.chmod(0o755)
            os.replace(temporary, folder)
        except OSError as error:
            raise _unwritable(folder, error.strerror or str(error)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return replace(report, output=folder)

    def _write_files(self, folder: Path) -> SubmissionReport:
        exported = export_official(self.model, folder / self._weights_name)
        if exported.mismatches:
            raise _mismatch(exported)
        result = submission.measure_submission(self.model, self.pairs, self.rules, self._progress)
        means: dict[Split, tuple[float, int]] = {
            split: (result.quality[split].psnr, len(pairs)) for split, pairs in self.pairs.items()
        }
        report = self._report(means, exported)
        entry = submission.results_entry(result)
        (folder / "results.json").write_text(submission.results_json(self.key, entry))
        factsheet = factsheet_markdown(
            self.key,
            result,
            entry,
            report.threshold_checks,
            self._training_lines(report),
            self._weights_lines(exported),
        )
        (folder / "factsheet.md").write_text(factsheet)
        return report

    @property
    def _weights_name(self) -> str:
        return f"team{self.key}.pth"

    def _progress(self, pairs: Sequence[Pair]) -> Any:
        return progress(pairs, self.key)

    def _report(
        self, means: Mapping[Split, tuple[float, int]], exported: ExportedCheckpoint
    ) -> SubmissionReport:
        datasets = None if self.recipe is None else training_datasets(self.recipe)
        names = [name.partition("[")[0] for name in datasets or ()]  # without "[:800]"
        stages = self.recipe.stage if self.recipe else ()
        return SubmissionReport(
            key=self.key,
            threshold_checks=threshold_checks(means, self.rules, self.model.method.team),
            trained_on=datasets,
            policy_violations=data_policy_violations(self.rules, names),
            files=list(dict.fromkeys(file for stage in stages for file in stage.checkpoints)),
            exported=exported,
        )

    def _training_lines(self, report: SubmissionReport) -> list[str]:
        """The training data, then one line for each run of a stage."""
        if self.recipe is None:
            return [report.data_policy]
        runs = [_stage_line(stage_summary(run)) for run in self.recipe.runs]
        return [report.data_policy, *runs, f"recipe sha256 {self.recipe.sha256}"]

    def _weights_lines(self, exported: ExportedCheckpoint) -> list[str]:
        return [
            f"`{self._weights_name}`, sha256 {exported.sha256}, {exported.form} form",
            f"converted from weights with sha256 {self.model.checkpoint.sha256}",
            exported.summary,
        ]


def _stage_line(summary: Mapping[str, Any]) -> str:
    """`first: init from scratch, length 12, batch size 2, ...`."""
    name, *items = summary.items()
    return f"{name[1]}: " + ", ".join(f"{key} {value}" for key, value in items if value)


def _mismatch(exported: ExportedCheckpoint) -> SubmissionError:
    return SubmissionError(
        f"The state dict does not match the official one: {exported.summary}",
        rule="the official code loads state dicts strictly: same keys, shapes and dtypes",
        remedy="submit weights of the published hyperparameters and form",
    )


def _unwritable(folder: Path, reason: str) -> UnwritableFile:
    return UnwritableFile(
        f"Cannot write the submission: {reason}",
        rule="a submission needs a new or empty folder",
        location=str(folder),
        remedy="name another folder with -o",
    )
