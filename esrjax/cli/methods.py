"""The commands `method list | show | check | new | cost`, and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esrjax.cli.options import (
    CHECKPOINTS_HELP,
    HparamsOption,
    JsonOption,
    MethodArgument,
    command_group,
    parse_checkpoints,
    parse_hparams,
    parse_image_size,
    print_json,
)

if TYPE_CHECKING:
    from esrjax.network.cost import Cost

app = command_group("Installed methods: list, inspect, check and create them, count their cost.")


@app.command("list")
def list_methods(as_json: JsonOption = False) -> None:
    """List the installed methods with their parameters, MACs (256x256 LR) and weights."""
    from esrjax import registry
    from esrjax.cli.tables import show_table
    from esrjax.errors import UserError

    rows: list[dict[str, Any]] = []
    for name in registry.names():
        try:
            rows.append(_summary(name))
        except UserError as error:
            typer.echo(f"esrjax: {error}", err=True)
        except Exception as error:  # a broken network must not hide the other methods
            package = registry.distribution_of(name)
            typer.echo(f"esrjax: {name} ({package}): {type(error).__name__}: {error}", err=True)
    if as_json:
        print_json(rows)
    else:
        show_table(rows, ("name", "team", "scale", "params", "macs", "weights", "pretrained"))


def _summary(name: str) -> dict[str, Any]:
    """The row of one method or ensemble in the list."""
    from esrjax import registry
    from esrjax.method import Ensemble

    entry = registry.get_entry(name)
    row = {"name": name, "team": entry.team, "scale": entry.scale, **_params_and_macs(name)}
    if isinstance(entry, Ensemble):
        pretrained = all(registry.get_method(member).pretrained for member in entry.members)
        return {**row, "weights": [], "pretrained": pretrained}
    return {**row, "weights": list(entry.weights), "pretrained": entry.pretrained is not None}


def _params_and_macs(name: str) -> dict[str, int]:
    """The reported figures, which `esrjax method check` verifies, or else counted ones."""
    from esrjax import registry

    reported, keys = registry.get_entry(name).reported, ("params", "macs")
    if all(key in reported for key in keys):
        return {key: int(reported[key]) for key in keys}
    from esrjax.contest.costs import method_cost

    cost = method_cost(name)
    return {key: getattr(cost, key) for key in keys}


@app.command()
def show(name: MethodArgument, as_json: JsonOption = False) -> None:
    """Show a method: description, paper, hyperparameters, reported figures and weights."""
    from esrjax import registry
    from esrjax.cli.tables import show_method

    entry, package = registry.get_entry(name), registry.distribution_of(name)
    if as_json:
        details = {"package": package, "paper": entry.paper, "description": entry.description}
        print_json({**_summary(name), **details})
    else:
        show_method(name, entry, package)


@app.command()
def check(name: MethodArgument, hparams: HparamsOption = None, as_json: JsonOption = False) -> None:
    """Run the checks that every method must pass; exit code 1 if one fails."""
    from esrjax import registry
    from esrjax.cli.tables import show_checks
    from esrjax.testing import run_checks

    method = registry.get_method(name)
    test_hparams = parse_hparams(hparams) or method.get_test_hparams()
    results = run_checks(method, **test_hparams)
    if as_json:
        print_json([{"check": r.check, "passed": not r.error, "error": r.error} for r in results])
    else:
        show_checks(name, results, test_hparams)
    raise typer.Exit(any(result.error for result in results))


@app.command()
def new(
    name: Annotated[
        str, typer.Argument(help="The method's name, a Python identifier.", metavar="NAME")
    ],
    folder: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="A new or empty folder.", show_default="./NAME"),
    ] = None,
) -> None:
    """Create a package with a new method: a network to start from, its test, pyproject.toml."""
    from esrjax.cli.scaffold import write_package

    for path in write_package(name, folder or Path(name)):
        typer.echo(path)
    typer.echo(f"\nNext: pip install -e {folder or name} && esrjax method check {name}")


@app.command()
def cost(
    name: MethodArgument,
    image_size: Annotated[
        str, typer.Option(help="Size of the LR image, pixels; N is a square.", metavar="N|HxW")
    ] = "256",
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            help=CHECKPOINTS_HELP,
            metavar="[METHOD=]FILE",
            show_default="none: the deploy form without weights",
        ),
    ] = None,
    hparams: HparamsOption = None,
    per_module: Annotated[
        bool, typer.Option("--per-module", help="Also list the cost of every module.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Count parameters, MACs, activations and convolutions: as the challenge does, and in full.

    official: what the counters of the challenge see. full: all operations and parameters that the
    output depends on, those that the counters miss included.
    """
    from esrjax.cli.tables import show_cost
    from esrjax.contest.costs import method_cost

    size, files = parse_image_size(image_size), parse_checkpoints(checkpoint, [name])
    cost = method_cost(name, image_size=size, files=files, hparams=parse_hparams(hparams))
    if as_json:
        print_json(_cost_json(name, cost, per_module))
    else:
        show_cost(name, cost, size, per_module=per_module)


def _cost_json(name: str, cost: Cost, per_module: bool) -> dict[str, Any]:
    figures = {"method": name, **vars(cost)}
    ops = figures.pop("ops")
    return {**figures, "modules": [vars(op) for op in ops]} if per_module else figures


def doctor(as_json: JsonOption = False) -> None:
    """Show the environment: versions, devices, methods, kernels, extras and folders."""
    from esrjax.cli.doctor import environment
    from esrjax.cli.tables import show_facts

    groups = environment()
    if as_json:
        print_json(groups)
    else:
        show_facts(groups)
