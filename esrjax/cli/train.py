"""The commands `demo`, `train` and `recipes list | show | schema`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from esrjax import registry
from esrjax.cli import options, supervisor
from esrjax.cli.output import (
    TrainingBar,
    print_error,
    print_json,
    print_line,
    print_notes,
    show_table,
)
from esrjax.errors import InvalidArgument, PluginError, UserError, error_summary, is_quiet, log_note

if TYPE_CHECKING:
    from esrjax.training.logging import TrainReport
    from esrjax.training.recipe import Recipe

RECIPE_HELP = "A shipped recipe (see `esrjax recipes list`) or a .toml file."

OverridesOption = Annotated[
    list[str] | None,
    Option(
        "--set",
        help="Override a value of the recipe, e.g. stage.0.optimizer.learning_rate=2e-4. "
        "Repeatable.",
        metavar="PATH=VALUE",
    ),
]

recipes = options.CommandGroup(
    "Training recipes: list the shipped ones, print one, print the schema."
)


def demo(
    output: Annotated[Path, options.output()] = Path("runs/demo"),
    minutes: Annotated[float, Option(min=0.05)] = 3.0,
) -> None:
    """Train a small network on a few photographs, then score, time, rank and show it.

    Args:
        output: Folder for data, run and results.
        minutes: Training time, minutes.
    """
    from esrjax.cli.demo import run

    run(output, minutes)


def train(
    recipe: Annotated[str | None, Argument(help=RECIPE_HELP, metavar="RECIPE")] = None,
    output: Annotated[Path | None, options.output()] = None,
    overrides: OverridesOption = None,
    resume: bool = False,
    dry_run: bool = False,
    list_params: bool = False,
    rules: str = options.DEFAULT_RULES,
    as_json: options.JsonOption = False,
    log: list[str] | None = None,
    distributed: bool = False,
    coordinator: str | None = None,
    num_processes: Annotated[int | None, Option(min=1)] = None,
    process_id: Annotated[int | None, Option(min=0)] = None,
) -> None:
    """Train a network from a recipe.

    Args:
        output: The run directory: checkpoints, log and weights; required except with --dry-run.
        resume: Resume the run from its last checkpoint; RECIPE may be left out.
        dry_run: Print stages, networks, cost, missing files and data policy; train nothing.
        list_params: With --dry-run: list every parameter with its optimizer.
        rules: With --dry-run: the challenge rules whose data policy is checked.
        as_json: With --dry-run: print JSON.
        log (LOGGER): Also log with tensorboard, wandb, mlflow or a logger of another package.
            Repeatable.
        distributed: Run as one of several processes; read the three options below from SLURM,
            Kubernetes, Open MPI or the TPU machine.
        coordinator (HOST:PORT): Address of process 0, with a free port.
        num_processes: Number of processes.
        process_id: Index of this process, from 0.
    """
    if recipe is None and resume and output:
        recipe = _stored_recipe(output)
    if recipe is None:
        raise _missing("-o" if output is None and not dry_run else "RECIPE")
    if dry_run:
        from esrjax.cli.dry_run import show_dry_run

        if log or distributed:
            option = "--log" if log else "--distributed"
            raise options.excludes(option, "--dry-run", "a dry run trains nothing")
        show_dry_run(recipe, overrides or (), rules, list_params=list_params, as_json=as_json)
        return
    of_dry_run = {
        "--list-params": list_params,
        "--json": as_json,
        "--rules": rules != options.DEFAULT_RULES,
    }
    for option in [option for option, is_set in of_dry_run.items() if is_set]:
        raise options.needs(option, "--dry-run", f"{option} describes the output of --dry-run")
    if output is None:
        raise _missing("-o")
    run = partial(_train, recipe, overrides, output, resume=resume, log=log or [])
    cluster = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    if not (distributed or _is_complete(cluster)):
        if code := run():
            raise typer.Exit(code)
    elif supervisor.is_child():
        supervisor.run_child(partial(_train_distributed, run, cluster), output)
    else:
        supervisor.supervise(output)


def _stored_recipe(output: Path) -> str:
    """The recipe in a run directory, from which --resume without RECIPE resumes."""
    path = output / "recipe.json"
    if path.is_file():
        return str(path)
    raise InvalidArgument(
        f"No run to resume in '{output}'",
        rule="--resume without RECIPE reads recipe.json in the run directory",
        location=str(path),
        remedy=f"check -o; start a run: esrjax train RECIPE -o {output}; or resume one that has "
        f"lost the file: esrjax train RECIPE -o {output} --resume",
    )


def _missing(argument: str) -> InvalidArgument:
    return InvalidArgument(
        f"Missing {argument}",
        rule="train needs a recipe and a run directory; with --resume the recipe is read from the "
        "run directory",
        remedy="for example: esrjax train quick -o runs/quick",
    )


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


# --- training ----------------------------------------------------------------------------------


def _train_distributed(run: Callable[[], int], cluster: dict[str, Any]) -> None:
    """Train as one of several processes; `cluster` holds the arguments of `Cluster`."""
    import jax

    from esrjax.training.distributed import Cluster

    Cluster(**cluster).join()
    code = run()
    jax.distributed.shutdown()
    sys.exit(code)


def _train(
    recipe_name: str, overrides: list[str] | None, output: Path, *, resume: bool, log: list[str]
) -> int:
    """Train and return the exit code; in a distributed run only the main process prints."""
    from esrjax.training import distributed, train

    run = partial(_run_stages, recipe_name, overrides, output, resume, log)
    with distributed.PreemptionHandler() as handler:
        try:
            files = run(handler.should_stop)
        except train.TrainingStopped as stopped:
            # With several processes JAX handles the signal, always SIGTERM.
            signum = signal.Signals(handler.signum or signal.SIGTERM)
            text = f"{stopped} by {signum.name}; resume with: esrjax train --resume -o {output}"
        except distributed.StopRequested as stopped:
            signum, text = signal.Signals(stopped.signum), str(stopped)
        else:
            signum, text = None, f"{output}: {', '.join(file.name for file in files)}"
    if distributed.is_main_process():
        print_line(text)
    return 128 + signum if signum else 0


def _run_stages(
    recipe_name: str,
    overrides: list[str] | None,
    output: Path,
    resume: bool,
    log: list[str],
    should_stop: Callable[[], bool],
) -> tuple[Path, ...]:
    from esrjax.training import distributed, recipe_loader, train
    from esrjax.training.checkpoint import RunDir
    from esrjax.training.recipe_loader import recipe_notes
    from esrjax.training.run_data import overlap_notes, summarize_data
    from esrjax.training.stage_trainer import device_lines

    recipe = recipe_loader.load(recipe_name, overrides or ())
    train.check_recipe(recipe)
    data = summarize_data(recipe)
    recipe = train.resolve_epochs(recipe)
    loggers: list[Any] = []
    if distributed.is_main_process():
        loggers = [*map(_find_logger, log)]
        lines = [f"dataset {name}: {summary}" for name, summary in data.items()]
        lines += [*device_lines(recipe), *recipe_notes(recipe), *overlap_notes(recipe)]
        for line in () if is_quiet() else lines:
            print_line(line, err=True)
        _print_reading_notes(recipe)
    if loggers:  # one adds to no run that is refused
        RunDir.open(output, recipe, resume=resume, data=data)
    with ExitStack() as stack:
        loggers = [_open_logger(stack, logger_class, output) for logger_class in loggers]
        if distributed.is_main_process():
            loggers.append(stack.enter_context(TrainingBar(recipe.total_steps)))
        return train.run_stages(
            recipe,
            output,
            resume=resume,
            on_report=partial(_log_report, loggers),
            should_stop=should_stop,
            data=data,
        )


def _find_logger(name: str) -> Any:
    return registry.get_component(registry.LOGGER_GROUP, name, "logger", Callable)


def _open_logger(stack: ExitStack, logger_class: Any, folder: Path) -> Any:
    """Return a logger that has been entered; its class raises what it likes."""
    try:
        return stack.enter_context(logger_class(folder))
    except UserError:
        raise
    except Exception as error:
        raise PluginError(
            f"{logger_class.__name__} cannot be used: {error_summary(error)}",
            rule="a logger is made with the folder of the run, and is a context manager",
            remedy="leave out --log, or correct the package that registers it",
        ) from error


def _log_report(loggers: list[Any], report: TrainReport) -> None:
    """Log a report; a logger that fails is not used again, and the training goes on."""
    for logger in tuple(loggers):
        try:
            logger.log(report)
        except Exception as error:  # of tensorboardX, or a terminal that is gone
            loggers.remove(logger)
            log_note(f"{type(logger).__name__} stops: {error_summary(error)}")


def _print_reading_notes(recipe: Recipe) -> None:
    """Print what reading changes in some images of every dataset; all of them take too long."""
    from esrjax.data import datasets
    from esrjax.training.run_data import dataset_scales

    for name, scale in dataset_scales(recipe).items():
        print_notes(datasets.sample_notes(datasets.list_pairs(name, scale)), f"{name}, ")


# --- recipes -----------------------------------------------------------------------------------


@recipes.command("list")
def list_recipes(as_json: options.JsonOption = False) -> None:
    """List the recipes that packages ship, with their method, stages and total steps."""
    from esrjax.training import recipe_loader

    rows: list[dict[str, Any]] = []
    for name, package in recipe_loader.recipe_packages().items():
        try:
            recipe = recipe_loader.load(name)
        except UserError as error:  # of another package, or of two
            print_error(error)
            continue
        steps = recipe.total_steps if all(stage.steps for stage in recipe.stage) else None
        row = {"name": name, "method": recipe.method, "stages": len(recipe.stage)}
        rows.append({**row, "total_steps": steps, "package": package})
    if as_json:
        print_json(rows)
    else:
        show_table([{key.replace("_", " "): row[key] for key in row} for row in rows])


@recipes.command()
def show(
    recipe: Annotated[str, Argument(help=RECIPE_HELP, metavar="RECIPE")],
    overrides: OverridesOption = None,
    resolved: bool = False,
) -> None:
    """Print a recipe as TOML, or with every default as JSON.

    Args:
        resolved: Print JSON with every default filled in.
    """
    from esrjax.training import recipe_loader
    from esrjax.training.recipe import to_json

    if overrides and not resolved:
        rule = "without --resolved the recipe is printed as it is in its file"
        raise options.needs("--set", "--resolved", rule)
    if resolved:
        text = to_json(recipe_loader.load(recipe, overrides or ()))
    else:
        text = recipe_loader.find_recipe_file(recipe).read_text("utf-8")
    typer.echo(text, nl=False)


@recipes.command()
def schema() -> None:
    """Print the JSON schema of recipe files."""
    from esrjax.training.recipe_loader import file_schema

    print_json(file_schema())
