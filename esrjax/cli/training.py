"""Verbs about training: demo, train, plan."""

from pathlib import Path
from typing import Annotated

import typer

from esrjax.cli.options import BadOption, Json, print_json

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the recipe: stage.0.optimiser.lr=2e-4.", metavar="PATH=V"),
]
Config = Annotated[
    str, typer.Argument(help="A recipe that esrjax ships, or a .toml file.", metavar="CONFIG")
]


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    for verb in (demo, train, plan):
        app.command()(verb)


def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Where.")] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option(help="How long to train.", min=0.05)] = 3.0,
) -> None:
    """Train a small network on photographs, score it, time it, rank it, show it."""
    from esrjax.cli.demo import run

    run(output, minutes)


def train(
    config: Annotated[
        str | None, typer.Argument(help="A recipe that esrjax ships, or a .toml file.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The run's folder.")] = None,
    changes: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder.")
    ] = False,
) -> None:
    """Train a method as a recipe says."""
    from esrjax.cli.progress import TrainingBar
    from esrjax.training import folder, loop
    from esrjax.training import recipe as recipes

    if output is None:
        raise _needs("-o", "the folder of the run")
    held = folder.read(output) if resume and config is None else None
    if held is None and config is None:
        raise _needs("CONFIG", "a recipe")
    said = held or recipes.load(str(config), changes or ())
    loop.require(said)
    said = loop.counted(said)
    with TrainingBar(said.steps) as bar:
        left = loop.carry_out(said, output, resume=resume, tell=bar.tell)
    typer.echo(f"{output}: {', '.join(file.name for file in left)}")


def plan(
    config: Config,
    changes: Set = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of recipes instead.")
    ] = False,
    leaves: Annotated[
        bool, typer.Option("--leaves", help="Show which rule moves each weight.")
    ] = False,
    rules: Annotated[
        str, typer.Option(help="The contest whose fairness the recipe is held against.")
    ] = "ntire2026",
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the recipe with every default instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a recipe would do, stage by stage, and what is missing; nothing is started."""
    from esrjax.cli.plans import as_data, show_plan
    from esrjax.training import recipe as recipes

    if schema:
        print_json(recipes.RECIPE.json_schema())
        return
    said = recipes.load(config, changes or ())
    if resolved:
        typer.echo(recipes.to_json(said), nl=False)
    elif as_json:
        print_json(as_data(said, rules))
    else:
        show_plan(said, rules, leaves=leaves)


def _needs(what: str, means: str) -> BadOption:
    return BadOption(
        f"{what} is missing",
        rule=f"train needs {what}, {means}; with --resume the recipe is read from the folder",
        remedy="write for instance: esrjax train quick -o runs/quick",
    )
