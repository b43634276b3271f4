"""The commands `demo`, `train` and `recipes list | show | schema`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from esrjax.cli.options import BadOption, JsonOption, command_group, print_json
from esrjax.cli.runs import TrainCommand
from esrjax.cli.watch import run_supervised

OverridesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override a value of the recipe, e.g. stage.0.optimizer.learning_rate=2e-4. "
        "Repeatable.",
        metavar="PATH=VALUE",
    ),
]
RECIPE_HELP = "A shipped recipe (see `esrjax recipes list`) or a .toml file."

recipes = command_group("Training recipes: list the shipped ones, print one, print the schema.")


def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for data, run and results.")
    ] = Path("runs/demo"),
    minutes: Annotated[float, typer.Option(help="Training time, minutes.", min=0.05)] = 3.0,
) -> None:
    """Train a small network on a few photographs, then score, time, rank and show it."""
    from esrjax.cli.demo import run

    run(output, minutes)


def train(
    recipe: Annotated[str | None, typer.Argument(help=RECIPE_HELP, metavar="RECIPE")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The run directory: checkpoints, log and weights; required except with --dry-run.",
        ),
    ] = None,
    overrides: OverridesOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the run from its last checkpoint; RECIPE may be left out.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print stages, networks, cost, missing files and data policy; train nothing.",
        ),
    ] = False,
    list_params: Annotated[
        bool,
        typer.Option(
            "--list-params", help="With --dry-run: list every parameter with its optimizer."
        ),
    ] = False,
    rules: Annotated[
        str,
        typer.Option(
            "--rules", help="With --dry-run: the challenge rules whose data policy is checked."
        ),
    ] = "ntire2026",
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard", help="Also log metrics for TensorBoard, in the run directory."
        ),
    ] = False,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed",
            help="Run as one of several processes; read the three options below from SLURM, "
            "Kubernetes, Open MPI or the TPU machine.",
        ),
    ] = False,
    coordinator: Annotated[
        str | None,
        typer.Option(help="Address of process 0, with a free port.", metavar="HOST:PORT"),
    ] = None,
    num_processes: Annotated[int | None, typer.Option(help="Number of processes.", min=1)] = None,
    process_id: Annotated[
        int | None, typer.Option(help="Index of this process, from 0.", min=0)
    ] = None,
) -> None:
    """Train a network from a recipe."""
    if recipe is None and resume and output:
        if not (output / "recipe.json").is_file():
            raise _no_run(output)
        recipe = str(output / "recipe.json")
    if dry_run:
        if recipe is None:
            raise _missing("RECIPE")
        _dry_run(recipe, overrides, rules, list_params=list_params, as_json=as_json)
        return
    if list_params or as_json:
        raise _needs_dry_run("--list-params" if list_params else "--json")
    if output is None:
        raise _missing("-o")
    if recipe is None:
        raise _missing("RECIPE")
    command = TrainCommand(
        recipe=recipe,
        overrides=tuple(overrides or ()),
        output=output,
        resume=resume,
        tensorboard=tensorboard,
    )
    cluster = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if distributed or _is_complete(cluster):
        run_supervised(lambda: command.train_distributed(cluster), output)
    else:
        command.train_single()


def _dry_run(
    recipe: str, overrides: list[str] | None, rules: str, *, list_params: bool, as_json: bool
) -> None:
    from esrjax.cli.plans import dry_run_json, show_dry_run
    from esrjax.training import recipe as loader

    loaded = loader.load(recipe, overrides or ())
    if as_json:
        print_json(dry_run_json(loaded, rules))
    else:
        show_dry_run(loaded, rules, list_params=list_params)


@recipes.command("list")
def list_recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes with their method, stages and total steps."""
    from esrjax.cli.tables import show_table
    from esrjax.training import recipe as loader

    rows: list[dict[str, Any]] = []
    for name in loader.shipped_recipes():
        recipe = loader.load(name)
        rows.append(
            {
                "name": name,
                "method": recipe.method,
                "stages": len(recipe.stage),
                "total_steps": recipe.total_steps if all(s.steps for s in recipe.stage) else None,
            }
        )
    if as_json:
        print_json(rows)
    else:
        columns = ("name", "method", "stages", "total steps")
        show_table([dict(zip(columns, row.values(), strict=True)) for row in rows], columns)


@recipes.command()
def show(
    recipe: Annotated[str, typer.Argument(help=RECIPE_HELP, metavar="RECIPE")],
    overrides: OverridesOption = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print JSON with every default filled in.")
    ] = False,
) -> None:
    """Print a recipe as TOML, or with every default as JSON."""
    from esrjax.training import recipe as loader

    if resolved:
        typer.echo(loader.to_json(loader.load(recipe, overrides or ())), nl=False)
        return
    if overrides:
        raise BadOption(
            "--set needs --resolved",
            rule="without --resolved the recipe is printed as it is in its file",
            remedy="add --resolved, or leave --set out",
        )
    typer.echo(loader.find_recipe_file(recipe).read_text("utf-8"), nl=False)


@recipes.command()
def schema() -> None:
    """Print the JSON schema of recipes."""
    from esrjax.training import recipe as loader

    print_json(loader.RECIPE.json_schema())


def _is_complete(cluster: dict[str, Any]) -> bool:
    """Whether the options of a distributed run are given; raise `BadOption` if only some are."""
    missing = [f"--{name.replace('_', '-')}" for name, value in cluster.items() if value is None]
    if 0 < len(missing) < len(cluster):
        raise BadOption(
            f"Missing {' and '.join(missing)}",
            rule="a process of a distributed run needs the coordinator's address, the number of "
            "processes and its own index",
            remedy="for example --coordinator node1:1234 --num-processes 2 --process-id 0, or "
            "--distributed under SLURM or Kubernetes",
        )
    if not missing and cluster["process_id"] >= cluster["num_processes"]:
        raise BadOption(
            f"Invalid --process-id {cluster['process_id']} of {cluster['num_processes']} processes",
            rule="processes are counted from 0",
            remedy=f"use an index from 0 to {cluster['num_processes'] - 1}",
        )
    return not missing


def _missing(argument: str) -> BadOption:
    return BadOption(
        f"Missing {argument}",
        rule="train needs a recipe and a run directory; with --resume the recipe is read from the "
        "run directory",
        remedy="for example: esrjax train quick -o runs/quick",
    )


def _no_run(output: Path) -> BadOption:
    return BadOption(
        f"No run to resume in '{output}'",
        rule="--resume without RECIPE reads recipe.json in the run directory",
        location=str(output / "recipe.json"),
        remedy=f"check -o, or start a run: esrjax train RECIPE -o {output}",
    )


def _needs_dry_run(option: str) -> BadOption:
    return BadOption(
        f"{option} needs --dry-run",
        rule=f"{option} describes the output of --dry-run",
        remedy=f"add --dry-run, or leave {option} out",
    )
