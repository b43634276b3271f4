"""The commands `demo`, `train` and `recipes list | show | schema`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esrjax.cli import supervisor
from esrjax.cli.options import JsonOption, command_group, print_json
from esrjax.errors import InvalidArgument

if TYPE_CHECKING:
    from esrjax.training.logging import TrainReport


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
        if supervisor.is_child():
            supervisor.run_child(lambda: command.train_distributed(cluster), output)
        else:
            supervisor.supervise(output)
    else:
        command.train_single()


def _dry_run(
    recipe: str, overrides: list[str] | None, rules: str, *, list_params: bool, as_json: bool
) -> None:
    from esrjax.cli.dry_run import dry_run_json, show_dry_run
    from esrjax.training import recipe_loader

    loaded = recipe_loader.load(recipe, overrides or ())
    if as_json:
        print_json(dry_run_json(loaded, rules))
    else:
        show_dry_run(loaded, rules, list_params=list_params)


@recipes.command("list")
def list_recipes(as_json: JsonOption = False) -> None:
    """List the shipped recipes with their method, stages and total steps."""
    from esrjax.cli.output import show_table
    from esrjax.training import recipe_loader

    rows: list[dict[str, Any]] = []
    for name in recipe_loader.shipped_recipes():
        recipe = recipe_loader.load(name)
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
    from esrjax.training import recipe_loader
    from esrjax.training.recipe import to_json

    if resolved:
        typer.echo(to_json(recipe_loader.load(recipe, overrides or ())), nl=False)
        return
    if overrides:
        raise InvalidArgument(
            "--set needs --resolved",
            rule="without --resolved the recipe is printed as it is in its file",
            remedy="add --resolved, or leave --set out",
        )
    typer.echo(recipe_loader.find_recipe_file(recipe).read_text("utf-8"), nl=False)


@recipes.command()
def schema() -> None:
    """Print the JSON schema of recipes."""
    from esrjax.training.recipe import RECIPE

    print_json(RECIPE.json_schema())


def _is_complete(cluster: dict[str, Any]) -> bool:
    """Whether the options of a distributed run are given; only some of them is an error."""
    missing = [f"--{name.replace('_', '-')}" for name, value in cluster.items() if value is None]
    if 0 < len(missing) < len(cluster):
        raise InvalidArgument(
            f"Missing {' and '.join(missing)}",
            rule="a process of a distributed run needs the coordinator's address, the number of "
            "processes and its own index",
            remedy="for example --coordinator node1:1234 --num-processes 2 --process-id 0, or "
            "--distributed under SLURM or Kubernetes",
        )
    if not missing and cluster["process_id"] >= cluster["num_processes"]:
        raise InvalidArgument(
            f"Invalid --process-id {cluster['process_id']} of {cluster['num_processes']} processes",
            rule="processes are counted from 0",
            remedy=f"use an index from 0 to {cluster['num_processes'] - 1}",
        )
    return not missing


def _missing(argument: str) -> InvalidArgument:
    return InvalidArgument(
        f"Missing {argument}",
        rule="train needs a recipe and a run directory; with --resume the recipe is read from the "
        "run directory",
        remedy="for example: esrjax train quick -o runs/quick",
    )


def _no_run(output: Path) -> InvalidArgument:
    return InvalidArgument(
        f"No run to resume in '{output}'",
        rule="--resume without RECIPE reads recipe.json in the run directory",
        location=str(output / "recipe.json"),
        remedy=f"check -o, or start a run: esrjax train RECIPE -o {output}",
    )


def _needs_dry_run(option: str) -> InvalidArgument:
    return InvalidArgument(
        f"{option} needs --dry-run",
        rule=f"{option} describes the output of --dry-run",
        remedy=f"add --dry-run, or leave {option} out",
    )


# --------------------------------------------------------------------------------------------------
# The work of `train`: in a single process, or as one process of a distributed run.
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TrainCommand:
    """The arguments of `esrjax train`.

    Attributes:
        recipe: A shipped recipe or a file.
        overrides: Changes of the recipe, such as `seed=5`.
        output: The run directory.
        resume: Whether to resume from the last checkpoint in the run directory.
        tensorboard: Whether to log metrics for TensorBoard, too.
    """

    recipe: str
    overrides: tuple[str, ...]
    output: Path
    resume: bool
    tensorboard: bool

    def train_distributed(self, cluster: dict[str, Any]) -> None:
        """Train as one of several processes; `cluster` holds the arguments of `Cluster`."""
        import jax

        from esrjax.training.distributed import Cluster

        Cluster(**cluster).join()
        self.train_single()
        jax.distributed.shutdown()

    def train_single(self) -> None:
        """Train; in a distributed run only the main process prints."""
        from esrjax.training import distributed, recipe_loader, train
        from esrjax.training.distributed import PreemptionHandler

        recipe = recipe_loader.load(self.recipe, self.overrides)
        train.check_recipe(recipe)
        recipe = train.resolve_epochs(recipe)
        echo = typer.echo if distributed.is_main_process() else (lambda _: None)
        try:
            with (
                PreemptionHandler() as preemption,
                self._reporting(recipe.total_steps) as on_report,
            ):
                files = train.run_stages(
                    recipe,
                    self.output,
                    resume=self.resume,
                    on_report=on_report,
                    should_stop=preemption.should_stop,
                )
        except train.TrainingStopped as stopped:
            echo(f"{stopped}; resume with: esrjax train --resume -o {self.output}")
        else:
            echo(f"{self.output}: {', '.join(file.name for file in files)}")

    @contextmanager
    def _reporting(self, total_steps: int) -> Generator[Callable[[TrainReport], None]]:
        """Yield the callback for reports: the progress bar, and TensorBoard where requested."""
        from esrjax.cli.output import TrainingBar
        from esrjax.training import distributed
        from esrjax.training.logging import TensorBoardLogger

        if not distributed.is_main_process():
            yield lambda _: None
            return
        with ExitStack() as stack:
            loggers = [TensorBoardLogger(self.output)] if self.tensorboard else []
            loggers = [
                stack.enter_context(logger) for logger in (*loggers, TrainingBar(total_steps))
            ]

            def on_report(report: TrainReport) -> None:
                for logger in loggers:
                    logger.log(report)

            yield on_report
