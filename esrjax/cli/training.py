"""Verbs about training: demo, train, plan."""

from pathlib import Path
from typing import Annotated, Any

import typer

from esrjax.cli.options import BadOption, Json, print_json
from esrjax.cli.runs import Run
from esrjax.cli.watch import watched

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the recipe: stage.0.optimiser.lr=2e-4.", metavar="PATH=V"),
]
Config = Annotated[
    str, typer.Argument(help="A recipe that esrjax ships, or a .toml file.", metavar="CONFIG")
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="One process of several, as the cluster says.")
]
Coordinator = Annotated[
    str | None, typer.Option(help="Where the first of several listens.", metavar="HOST:PORT")
]
Processes = Annotated[int | None, typer.Option(help="How many there are.", min=1)]
Process = Annotated[int | None, typer.Option(help="Which this is, from 0.", min=0)]


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
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Metrics also for TensorBoard.")
    ] = False,
    distributed: Distributed = False,
    coordinator: Coordinator = None,
    processes: Processes = None,
    process: Process = None,
) -> None:
    """Train a method as a recipe says."""
    if output is None:
        raise _needs("-o", "the folder of the run")
    if config is None and resume and (output / "recipe.json").is_file():
        config = str(output / "recipe.json")
    if config is None:
        raise _needs("CONFIG", "a recipe")
    run = Run(
        config=config,
        changes=tuple(changes or ()),
        output=output,
        resume=resume,
        tensorboard=tensorboard,
    )
    place = {"coordinator": coordinator, "processes": processes, "process": process}
    if distributed or _all_said(place):
        watched(lambda: run.among(place), output)
    else:
        run.alone()


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


def _all_said(place: dict[str, Any]) -> bool:
    """Whether this process is told its place among others; half a place is a mistake."""
    missing = [f"--{name}" for name, value in place.items() if value is None]
    if 0 < len(missing) < len(place):
        raise BadOption(
            f"{' and '.join(missing)} missing",
            rule="a process among others is told where the first listens, how many there are and "
            "which it is",
            remedy="write for instance: --coordinator node1:1234 --processes 2 --process 0, or "
            "--distributed where SLURM or Kubernetes knows",
        )
    if not missing and place["process"] >= place["processes"]:
        raise BadOption(
            f"--process {place['process']} of {place['processes']}",
            rule="processes are counted from 0",
            remedy=f"say one from 0 to {place['processes'] - 1}",
        )
    return not missing


def _needs(what: str, means: str) -> BadOption:
    return BadOption(
        f"{what} is missing",
        rule=f"train needs {what}, {means}; with --resume the recipe is read from the folder",
        remedy="write for instance: esrjax train quick -o runs/quick",
    )
