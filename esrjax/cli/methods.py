"""Verbs about methods: list, show, check, new, doctor."""

from pathlib import Path
from typing import Annotated, Any

import typer

from esrjax.cli.options import Json, Name, Size, print_json, sizes


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    app.command("list")(list_methods)
    for verb in (show, check, new, doctor):
        app.command()(verb)


def list_methods(as_json: Json = False) -> None:
    """The installed methods, with their cost at 256x256 and where their weights come from."""
    from esrjax import registry
    from esrjax.cli.tables import show_table
    from esrjax.errors import UserError

    rows: list[dict[str, Any]] = []
    for name in registry.names():
        try:
            rows.append(_entry(name))
        except UserError as error:
            typer.echo(f"esrjax: {error}", err=True)
        except Exception as error:  # of one network; the others are not affected
            said = f"{type(error).__name__}: {error}"
            typer.echo(f"esrjax: {name}, of {registry.origin(name)}, raised {said}", err=True)
    if as_json:
        print_json(rows)
    else:
        show_table(rows, ("name", "team", "scale", "params", "macs", "weights", "pretrained"))


def _entry(name: str) -> dict[str, Any]:
    from esrjax import registry
    from esrjax.method import Ensemble

    method = registry.method(name)
    entry = {"name": name, "team": method.team, "scale": method.scale}
    if isinstance(method, Ensemble):
        shipped = all(registry.plain(member).pretrained for member in method.members)
        return {**entry, **_figures(name), "weights": [], "pretrained": shipped}
    weights, shipped = list(method.weights), method.pretrained is not None
    return {**entry, **_figures(name), "weights": weights, "pretrained": shipped}


def _figures(name: str) -> dict[str, int]:
    """Parameters and MACs as reported (which `check` verifies), else counted."""
    from esrjax import registry

    reported, keys = getattr(registry.method(name), "reported", {}), ("params", "macs")
    if all(key in reported for key in keys):
        return {key: int(reported[key]) for key in keys}
    from esrjax.contest.costs import costs

    counted = costs(name)
    return {key: getattr(counted, key) for key in keys}


def show(name: Name, as_json: Json = False) -> None:
    """A method's card: what it is, its numbers, its weights, its sizes."""
    from esrjax import registry
    from esrjax.cli.tables import show_card

    method, origin = registry.method(name), registry.origin(name)
    if as_json:
        print_json({**_entry(name), "origin": origin, "paper": method.paper, "card": method.card})
    else:
        show_card(name, method, origin)


def check(name: Name, size: Size = None, as_json: Json = False) -> None:
    """Whether a method keeps the laws that every plugin must keep."""
    from esrjax import registry
    from esrjax.cli.tables import show_verdicts
    from esrjax.testing import verdicts

    method = registry.plain(name)
    asked = sizes(size) or method.tiny()
    outcome = verdicts(method, **asked)
    if as_json:
        print_json([vars(verdict) for verdict in outcome])
    else:
        show_verdicts(name, outcome, asked)
    raise typer.Exit(any(verdict.broken for verdict in outcome))


def new(
    name: Annotated[str, typer.Argument(help="The method's name, a Python identifier.")],
    folder: Annotated[Path | None, typer.Option("-o", help="Where.", show_default="./NAME")] = None,
) -> None:
    """Write a package that registers a new method: one plugin, one test, ready to install."""
    from esrjax.cli.scaffold import write

    for path in write(name, folder or Path(name)):
        typer.echo(path)
    typer.echo(f"\nnext: pip install -e {folder or name} && esrjax check {name}")


def doctor(as_json: Json = False) -> None:
    """What esrjax runs on: versions, devices, kernels, extras, folders."""
    from esrjax.cli.doctor import facts
    from esrjax.cli.tables import show_facts

    found = facts()
    if as_json:
        print_json(found)
    else:
        show_facts(found)
