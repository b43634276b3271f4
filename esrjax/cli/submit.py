"""The commands of `submit`: build and check for participants, score and merge for organisers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Option

from esrjax.cli import options
from esrjax.cli.output import (
    markdown_table,
    number_text,
    print_json,
    print_lr_source,
    print_note,
    print_notes,
    progress_bar,
)
from esrjax.errors import InvalidArgument
from esrjax.io import check_outputs

if TYPE_CHECKING:
    from esrjax.challenge.record import ResultsEntry
    from esrjax.challenge.rules import Rules
    from esrjax.challenge.submission import Split
    from esrjax.cli.submission_builder import SubmissionBuilder, SubmissionReport
    from esrjax.evaluation.score import Scores
    from esrjax.training.recipe import Recipe

app = options.CommandGroup(
    "Challenge submissions: build and check one; score and merge those of the teams."
)

PSNR_NOTE = 1e-3  # dB; a team's PSNR may differ by so much from that of its images without a note

ValidOption = Annotated[
    str, Option(help="The validation dataset: its name or its folder.", metavar="DATASET")
]
TestOption = Annotated[
    str,
    Option(
        help="The test dataset: its name or its folder; a folder of LR images alone is enough.",
        metavar="DATASET",
    ),
]
NumberOption = Annotated[
    int | None,
    Option(
        "--id",
        help="The number that the organisers gave the model.",
        min=0,
        show_default="the team's",
    ),
]
RecipeOption = Annotated[
    Path | None,
    Option(
        help="The recipe that the weights were trained with.", show_default="recipe.json of the run"
    ),
]


@app.command()
def build(
    output: Annotated[Path, options.output()],
    valid: ValidOption,
    test: TestOption,
    name: options.OptionalMethodArgument = None,
    checkpoint: options.CheckpointOption = None,
    number: NumberOption = None,
    recipe: RecipeOption = None,
    rules: options.RulesOption = "ntire2026",
    hparams: options.HparamsOption = None,
    runs: Annotated[int, Option(min=1)] = 1,
    zip: Literal["test", "valid", "both"] = "test",
    as_json: options.JsonOption = False,
) -> None:
    """Write a model's submission: weights (.pth), results.json, factsheet, zip of SR images.

    The PSNR of a test dataset without HR is unknown; `submit score` adds it from the SR images.

    Args:
        output: A new or empty folder for the submission.
        runs: Runs over all images that the runtimes are means of; the challenge's tables have 5.
        zip: The split whose SR images are written as a zip for the evaluation server.
    """
    builder = _builder(name, valid, test, checkpoint, number, recipe, rules, hparams)
    zips: tuple[Split, ...] = ("valid", "test") if zip == "both" else (zip,)
    _print_report(builder.write(output, runs, zips), as_json)


@app.command()
def check(
    valid: ValidOption,
    test: TestOption,
    name: options.OptionalMethodArgument = None,
    checkpoint: options.CheckpointOption = None,
    number: NumberOption = None,
    recipe: RecipeOption = None,
    rules: options.RulesOption = "ntire2026",
    hparams: options.HparamsOption = None,
    upload: Path | None = None,
    as_json: options.JsonOption = False,
) -> None:
    """Check PSNR thresholds, data policy and state dict; exit code 1 if any of them fails.

    Args:
        upload (UPLOAD): A zip or folder of SR images of the test dataset, whose names, number and
            sizes are checked too.
    """
    report = _builder(name, valid, test, checkpoint, number, recipe, rules, hparams).check(upload)
    _print_report(report, as_json)
    raise typer.Exit(bool(report.failures))


@app.command()
def score(
    upload: Path,
    data: Annotated[str, Option()],
    entry: Annotated[Path, Option()],
    output: Annotated[Path, options.output()],
    split: Literal["valid", "test"] = "test",
    team: Annotated[str | None, Option(show_default="that of its number, or of -o")] = None,
    measured_by: Annotated[str | None, Option(show_default="the team")] = None,
    rules: options.RulesOption = "ntire2026",
    as_json: options.JsonOption = False,
) -> None:
    """Score uploaded SR images against HR, and write the entry of a team; no network is run.

    PSNR comes from the images, runtime and cost from the team's results.json. Missing, additional
    and wrong-size images are refused.

    Args:
        upload (UPLOAD): A zip or a folder of SR images.
        data (DATASET): The dataset with HR: its name or its folder.
        entry (FILE): The results.json of the submission, or its folder.
        output: The file of the entry, TEAM.json in a folder of all entries, for `esrjax rank`.
        split: The split that the images are of.
        team: Name of the team.
        measured_by (NAME): Who measured runtime and cost in the results.json.
    """
    from esrjax.challenge import record, uploads
    from esrjax.challenge.rules import SCALE, load_rules
    from esrjax.data import datasets

    loaded_rules = load_rules(rules)
    check_outputs([output], [entry, upload])
    key, reported_entry = record.read_entry(entry)
    pairs = datasets.list_pairs(data, SCALE)
    print_lr_source(split, pairs)
    scores = uploads.score_upload(upload, pairs, loaded_rules, progress_bar(upload.name))
    print_notes(scores.notes, f"{upload.name}, ")
    name = team or record.team_of_key(key, reported_entry, loaded_rules) or output.stem
    scored = uploads.scored_entry(
        reported_entry, split, scores, upload, team=name, measured_by=measured_by or name
    )
    reported = getattr(reported_entry, f"{split}_ave_psnr")
    if reported is not None and abs(scores.mean.psnr - reported) > PSNR_NOTE:
        print_note(
            f"{name} reports {reported:.4f} dB on {split}; its images have {scores.mean.psnr:.4f}"
        )
    record.write_entries({key: scored}, output)
    _print_entry(key, scored, scores, split, output, loaded_rules, as_json)


def _print_entry(
    key: str,
    entry: ResultsEntry,
    scores: Scores,
    split: Split,
    output: Path,
    rules: Rules,
    as_json: bool,
) -> None:
    from esrjax.challenge.submission import threshold_checks, threshold_text

    means: dict[Split, tuple[float, int]] = {split: (scores.mean.psnr, len(scores.images))}
    (check,) = threshold_checks(means, rules, entry.team or "")
    if as_json:
        result = {"key": key, "outcome": check.outcome, **scores.as_dict(), **vars(entry)}
        print_json({**result, "output": output})
        return
    runtimes = f"{entry.valid_ave_runtime:.3f} ms on valid, {entry.test_ave_runtime:.3f} ms on test"
    typer.echo(f"{key} of {entry.team}")
    typer.echo(f"{split:<14} {check.psnr:.4f} dB, {threshold_text(check)}")
    typer.echo(f"runtime        {runtimes}, measured by {entry.measured_by}")
    typer.echo(f"written        {output}")


@app.command()
def merge(
    source: Path,
    output: Annotated[Path, options.output()] = Path("results.json"),
    rules: options.RulesOption = "ntire2026",
) -> None:
    """Merge the entries of all teams into one results.json, in the organisers' form.

    Args:
        source (FOLDER): A folder of entries, TEAM.json or TEAM/results.json.
        output: The file to write.
    """
    from esrjax.challenge import record
    from esrjax.challenge.rules import load_rules

    entries, files = record.merge_entries(source, load_rules(rules))
    check_outputs([output], files)
    record.write_entries(entries, output)
    cells = [["model", "team", "PSNR valid, dB", "PSNR test, dB", "runtime, ms", "measured by"]]
    for key, entry in entries.items():
        psnrs = (number_text(p, ".2f") for p in (entry.valid_ave_psnr, entry.test_ave_psnr))
        runtime = (entry.valid_ave_runtime + entry.test_ave_runtime) / 2
        cells.append([key, entry.team or "-", *psnrs, f"{runtime:.3f}", entry.measured_by or "-"])
    typer.echo(f"{markdown_table(cells, f'{len(entries)} entries')}\n\nwritten to {output}")


def _print_report(report: SubmissionReport, as_json: bool) -> None:
    if as_json:
        print_json(report.as_dict())
    else:
        typer.echo(report.text())


def _builder(
    name: str | None,
    valid: str,
    test: str,
    checkpoint: Path | None,
    number: int | None,
    recipe: Path | None,
    rules: str,
    hparams: list[str] | None,
) -> SubmissionBuilder:
    from esrjax.challenge.rules import check_scale, load_rules
    from esrjax.challenge.submission import model_number
    from esrjax.cli.submission_builder import SubmissionBuilder
    from esrjax.data import datasets
    from esrjax.inference import open_method

    loaded_rules = load_rules(rules)
    model = open_method(name, checkpoint, options.parse_hparams(hparams))
    check_scale(model.name, model.scale, "submit a network for x4")
    images: dict[Split, datasets.Images] = {
        "valid": datasets.list_lr_images(valid, model.scale),
        "test": datasets.list_lr_images(test, model.scale),
    }
    for split, split_images in images.items():
        print_lr_source(split, split_images)
    return SubmissionBuilder(
        model=model,
        number=model_number(loaded_rules, model.method.team, number),
        images=images,
        rules=loaded_rules,
        recipe=_recipe(model.name, recipe, model.checkpoint.path.parent),
    )


def _recipe(name: str, path: Path | None, run_dir: Path) -> Recipe | None:
    """The recipe at `path`, or else that of the run directory of the weights, if there is one."""
    from esrjax.training import checkpoint, recipe_loader

    recipe = checkpoint.read_recipe(run_dir) if path is None else recipe_loader.load(path)
    if recipe is not None and recipe.method != name:
        raise InvalidArgument(
            f"The recipe trains {recipe.method!r}, not {name!r}",
            rule="the recipe of a submission is the one its weights were trained with",
            location=str(path or run_dir / "recipe.json"),
            remedy="name the recipe of these weights with --recipe",
        )
    return recipe
