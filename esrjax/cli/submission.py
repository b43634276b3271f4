"""The verb submit: what a contest asks for, or whether it would be in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esrjax.cli.options import BadOption, Json, Name, RulesName, Size, print_json, sizes

if TYPE_CHECKING:
    from esrjax.training.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command()(submit)


def submit(
    name: Name,
    valid: Annotated[str, typer.Option(help="The validation set: its name or folder.")],
    test: Annotated[str, typer.Option(help="The test set: its name or folder.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A .pth, a .safetensors or a run directory.", show_default="shipped weights"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The submission, a new folder.")
    ] = None,
    asked: Annotated[
        int | None,
        typer.Option("--id", help="Number of the model.", min=0, show_default="the team's"),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="How it was trained.", show_default="recipe.json of the run"),
    ] = None,
    rules: RulesName = "ntire2026",
    size: Size = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; say what would be refused.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write what the challenge asks for: weights, factsheet, results.json; or --check it first."""
    from esrjax.cli.handover import Handover
    from esrjax.contest import rules as contest_rules
    from esrjax.contest import submission
    from esrjax.model import open_method

    if (output is None) != check:
        raise _one_of(check)
    said = contest_rules.load(rules)
    handover = Handover(
        model=(model := open_method(name, checkpoint, sizes(size))),
        number=submission.number(said, model.method.team, asked),
        sets=_sets({"valid": valid, "test": test}, model.scale),
        rules=said,
        recipe=_recipe(name, recipe, model.checkpoint.path.parent),
    )
    if output is not None:
        handover.require_place(output)
    judged = handover.check() if output is None else handover.write(output)
    if as_json:
        print_json(judged.as_dict())
    else:
        typer.echo(judged.text())
    raise typer.Exit(check and bool(judged.failures))


def _sets(given: dict[str, str], scale: int) -> Any:
    from esrjax.pictures import sets

    return {split: sets.select(name, scale) for split, name in given.items()}


def _recipe(name: str, given: Path | None, folder: Path) -> Recipe | None:
    """The recipe that is given, or that of the run whose folder the weights lie in."""
    from esrjax.training import folder as runs
    from esrjax.training import recipe as recipes

    said = runs.read(folder) if given is None else recipes.load(given)
    if said is not None and said.method != name:
        raise BadOption(
            f"the recipe trains {said.method!r}, not {name!r}",
            rule="a submission is trained by its own recipe",
            place=str(given or folder / "recipe.json"),
            remedy="name the recipe of these weights with --recipe",
        )
    return said


def _one_of(check: bool) -> BadOption:
    return BadOption(
        "--check is given with -o" if check else "neither -o nor --check is given",
        rule="submit writes a folder, -o; with --check it writes nothing",
        remedy="leave one of the two out" if check else "name a new folder with -o, or say --check",
    )
