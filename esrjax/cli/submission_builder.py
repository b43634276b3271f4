"""Builder of challenge submissions, and its report: PSNR thresholds, data policy, state dict.

A submission is the weights, results.json, the factsheet, and the SR images for the server.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esrjax.challenge import factsheet, record, submission, uploads
from esrjax.challenge.record import Result, ResultsEntry
from esrjax.challenge.rules import Rules, extra_datasets
from esrjax.challenge.submission import Split, ThresholdCheck, threshold_text
from esrjax.cli.dry_run import policy_violations, stage_summary, training_datasets
from esrjax.cli.output import print_notes, progress_bar
from esrjax.data.datasets import Images, has_hr, lr_source, parse_name
from esrjax.errors import SubmissionError, UnwritableFile, list_some
from esrjax.evaluation.score import Scores
from esrjax.evaluation.upscale import uint8_upscaler
from esrjax.inference import Model
from esrjax.interop.convert import ExportedCheckpoint, export_official
from esrjax.io import atomic_write
from esrjax.training.recipe import Recipe, StageRun, to_json

Means = Mapping[Split, tuple[float, int]]  # mean PSNR in dB, and the number of images


@dataclass(frozen=True, kw_only=True)
class SubmissionReport:
    """Whether a challenge would accept a submission.

    Attributes:
        key: The submission's key in results.json, such as `22_spanv2`.
        threshold_checks: The PSNR on each split against the threshold of the challenge.
        lr_sources: Where the LR images of each split come from.
        unknown_psnr: Split without HR, whose PSNR the organisers compute -> what is known of it.
        trained_on: The training datasets; None where no recipe is known.
        policy_violations: A line for each training dataset that the rules forbid.
        files: Weights that the recipe takes from outside: initial weights and teachers.
        state_dict: The exported checkpoint, compared with the published one.
        upload: The zip or folder of SR images that was checked, or None.
        zips: The zips of SR images that were written.
        blanks: What the team has to fill in in the factsheet; None if none was written.
        output: The folder of the submission; None if nothing was written.
    """

    key: str
    threshold_checks: Sequence[ThresholdCheck]
    lr_sources: Mapping[Split, str]
    unknown_psnr: Mapping[Split, str]
    trained_on: Sequence[str] | None
    policy_violations: Sequence[str]
    files: Sequence[str]
    state_dict: ExportedCheckpoint
    upload: Path | None = None
    zips: Sequence[str] = ()
    blanks: Sequence[str] | None = None
    output: Path | None = None

    @property
    def failures(self) -> list[str]:
        """The reasons for which the submission would be rejected."""
        causes = {"data policy": self.policy_violations, "state dict": self.state_dict.mismatches}
        return self._splits("fails") + [name for name, lines in causes.items() if lines]

    @property
    def undetermined(self) -> list[str]:
        """The checks that could not be made with the given datasets and recipe."""
        without_hr = [f"PSNR on {split}" for split in self.unknown_psnr]
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
            *(f"{split:<14} {text}" for split, text in self.unknown_psnr.items()),
            f"training data  {self.data_policy}",
            f"state dict     {self.state_dict.summary}",
            *([f"SR images      {self.upload}: complete"] if self.upload else []),
            *(f"SR images      {name}" for name in self.zips),
        ]
        if self.blanks is not None:
            count = f"{len(self.blanks)} blanks to be filled"
            lines.append(f"factsheet      {count}: {list_some(self.blanks, 4, '; ')}")
        lines.append(f"result         {result}")
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
    """Builds or checks the submission of a model: weights, factsheet, results.json, SR images.

    Attributes:
        model: The network with its weights.
        number: The model's number in the challenge.
        images: The image pairs of the validation and the test dataset; of LR images without HR,
            as those of a hidden test set, the PSNR is unknown.
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

    def check(self, upload: Path | None = None) -> SubmissionReport:
        """Score and export the model without keeping any file.

        Args:
            upload: A zip or folder of SR images of the test split, which is checked too.

        Raises:
            SubmissionError: Files of the upload are missing, not expected or of another size.
        """
        if upload is not None:
            uploads.check_upload(upload, self.images["test"], self.rules.upload)
        with tempfile.TemporaryDirectory() as temporary:
            exported = export_official(self.model, Path(temporary) / self._weights_name)
        bar = progress_bar(self.key)
        scores = submission.score_splits(self.model, self.images, self.rules, bar)
        return replace(self._report(_means(scores), exported), upload=upload)

    def write(
        self, folder: Path, num_runs: int = 1, zips: Sequence[Split] = ("test",)
    ) -> SubmissionReport:
        """Write the submission to `folder`, as a whole or not at all.

        Args:
            folder: A new or empty folder.
            num_runs: Number of runs that the runtimes are means of.
            zips: The splits whose SR images are written.

        Raises:
            UnwritableFile: The folder is not empty, or cannot be created.
            SubmissionError: The state dict differs from the official one, or valid has no HR.
        """
        if not has_hr(self.images["valid"]):
            raise SubmissionError(
                "There are no HR images of valid, only LR images",
                rule="results.json contains the PSNR on the validation split, whose HR is public; "
                "that on test may be unknown",
                remedy="give the validation dataset with HR images; `submit check` checks the rest "
                "without them",
            )
        _check_folder(folder)
        with atomic_write(folder, "name another folder with -o") as temporary:
            temporary.mkdir()
            report = self._write_files(temporary, num_runs, zips)
        return replace(report, output=folder)

    def _write_files(self, folder: Path, num_runs: int, zips: Sequence[Split]) -> SubmissionReport:
        exported = export_official(self.model, folder / self._weights_name)
        if exported.mismatches:
            raise SubmissionError(
                f"The state dict does not match the official one: {exported.summary}",
                rule="the official code loads state dicts strictly: same keys, shapes and dtypes",
                remedy="submit weights of the published hyperparameters and form",
            )
        bar = progress_bar(self.key)
        result, scores = submission.measure_submission(
            self.model, self.images, self.rules, bar, num_runs
        )
        report, entry = self._report(_means(scores), exported), submission.results_entry(result)
        (folder / "results.json").write_text(record.entries_json({self.key: entry}))
        names = [self._write_zip(folder, split, result) for split in zips]
        sections = factsheet.factsheet(self._factsheet_data(report, result, entry))
        title = f"Factsheet of {self.key}, {self.model.method.team}"
        (folder / "factsheet.md").write_text(factsheet.markdown(title, sections))
        (folder / "factsheet.tex").write_text(factsheet.latex(title, sections))
        blanks = factsheet.blanks(sections)
        if self._extra_data is None and zips:
            blanks.append(f"{uploads.README}: extra data, 1 or 0; filled with --recipe")
        if factsheet.BLANK in self._description and zips:
            blanks.append(f"{uploads.README}: description; filled from the method's description")
        return replace(report, zips=names, blanks=blanks)

    def _write_zip(self, folder: Path, split: Split, result: Result) -> str:
        """Write the SR images of a split, and return what was written, in words."""
        images, upload, extra = self.images[split], self.rules.upload, self._extra_data
        timing = result.protocol_timing[split]
        readme = uploads.readme_text(
            upload,
            timing.mean_ms,
            timing.device,
            extra_data=factsheet.blank("1 or 0") if extra is None else str(int(bool(extra))),
            description=f"{self.model.name}; {self._description}",
        )
        file, bar = folder / f"{split}_sr.zip", progress_bar(f"{split}_sr.zip")
        upscale = uint8_upscaler(self.model.upscaler())
        uploads.write_upload(file, images, upscale, upload, readme, bar)
        uploads.check_upload(file, images, upload)
        name = upload.image_name.format(name=images[0].name)
        return f"{file.name}: {len(images)} images ({name}, ...) and {uploads.README}"

    @property
    def _description(self) -> str:
        """The first line of the method's description, or a blank."""
        text = (self.model.method.description or "").strip().partition("\n")[0]
        return factsheet.fill(text, "description")

    @property
    def _extra_data(self) -> list[str] | None:
        """The training datasets that the challenge does not provide; None if they are unknown."""
        if self.recipe is None:
            return None
        names = [parse_name(name).dataset for name in training_datasets(self.recipe)]
        return extra_datasets(self.rules, names)

    def _factsheet_data(
        self, report: SubmissionReport, result: Result, entry: ResultsEntry
    ) -> factsheet.FactsheetData:
        recipe, exported = self.recipe, report.state_dict
        training = [report.data_policy]
        if recipe is not None:
            training += [*map(_stage_line, recipe.runs), f"recipe sha256 {recipe.sha256}"]
        return factsheet.FactsheetData(
            key=self.key,
            method=self.model.method,
            result=result,
            entry=entry,
            checks=report.threshold_checks,
            training=training,
            recipe=None if recipe is None else to_json(recipe),
            external=None if recipe is None else report.files,
            weights=[
                f"weights: {self._weights_name}, sha256 {exported.sha256}, {exported.form} form",
                f"converted from weights with sha256 {self.model.checkpoint.sha256}",
                exported.summary,
            ],
            hparams=self.model.hparams,
        )

    def _unknown_psnr(self, count: int) -> str:
        required = self.rules.psnr_thresholds.num_images
        text = f"PSNR unknown, {factsheet.UNKNOWN_PSNR}"
        return text if count == required else f"{text}; {count} images instead of {required}"

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
            unknown_psnr={
                split: self._unknown_psnr(len(images))
                for split, images in self.images.items()
                if not has_hr(images)
            },
            threshold_checks=submission.threshold_checks(means, self.rules, team),
            trained_on=training_datasets(recipe) if recipe else None,
            policy_violations=policy_violations(recipe, self.rules) if recipe else (),
            files=list(dict.fromkeys(files)),
            state_dict=exported,
        )


def _means(scores: Mapping[Split, Scores]) -> Means:
    """Print what reading the images has changed, and return the means of the splits."""
    for split, split_scores in scores.items():
        print_notes(split_scores.notes, f"{split}, ")
    return {split: (s.mean.psnr, len(s.images)) for split, s in scores.items()}


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
