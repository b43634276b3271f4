"""The commands `submit build` and `submit check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from esrjax.cli import options
from esrjax.cli.output import print_json, print_lr_source
from esrjax.errors import InvalidArgument

if TYPE_CHECKING:
    from esrjax.cli.submission_builder import SubmissionBuilder, SubmissionReport
    from esrjax.training.recipe import Recipe

app = options.CommandGroup(
    "Challenge submissions: build one, or check whether it would be accepted."
)

ValidOption = Annotated[
    str, Option(help="The validation dataset: its name or its folder.", metavar="DATASET")
]
TestOption = Annotated[
    str, Option(help="The test dataset: its name or its folder.", metavar="DATASET")
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
    as_json: options.JsonOption = False,
) -> None:
    """Measure a model and write its submission: weights (.pth), factsheet, results.json.

    Args:
        output: A new or empty folder for the submission.
    """
    builder = _builder(name, valid, test, checkpoint, number, recipe, rules, hparams)
    _print_report(builder.write(output), as_json)


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
    as_json: options.JsonOption = False,
) -> None:
    """Check PSNR thresholds, data policy and state dict; exit code 1 if any of them fails."""
    report = _builder(name, valid, test, checkpoint, number, recipe, rules, hparams).check()
    _print_report(report, as_json)
    raise typer.Exit(bool(report.failures))


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
    from esrjax.challenge.submission import Images, Split, model_number
    from esrjax.cli.submission_builder import SubmissionBuilder
    from esrjax.data import datasets
    from esrjax.inference import open_method

    loaded_rules = load_rules(rules)
    model = open_method(name, checkpoint, options.parse_hparams(hparams))
    check_scale(model.name, model.scale, "submit a network for x4")
    images: dict[Split, Images] = {
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
