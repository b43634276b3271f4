"""Verbs about weights and networks: convert, cost."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from esrjax.cli.options import (
    Checkpoints,
    Json,
    Name,
    Size,
    by_name,
    print_json,
    sizes,
)


def register(app: typer.Typer) -> None:
    """Add these verbs to the command."""
    for verb in (convert, cost):
        app.command()(verb)


def convert(
    name: Name,
    checkpoint: Annotated[Path, typer.Argument(help="A .pth, a .safetensors or a run directory.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    to: Annotated[
        Literal["safetensors", "torch"] | None,
        typer.Option(help="The format to write.", show_default="by the output's suffix"),
    ] = None,
    form: Annotated[
        Literal["same", "deploy"], typer.Option(help="Keep the form, or fuse to the deploy form.")
    ] = "same",
    size: Size = None,
) -> None:
    """Check a checkpoint against its method, and write it as .safetensors or .pth."""
    from esrjax.bridge import conversion

    kind = conversion.kind(output, to)
    done = conversion.convert(name, checkpoint, output, to=kind, form=form, sizes=sizes(size))
    typer.echo(
        f"{output}: {name}, {done.form} form, {done.tensors} tensors, {done.params} parameters"
    )


def cost(
    name: Name,
    side: Annotated[int, typer.Option(help="Side of the LR picture, pixels.", min=1)] = 256,
    checkpoint: Checkpoints = None,
    size: Size = None,
    parts: Annotated[bool, typer.Option("--parts", help="Also every part's share.")] = False,
    as_json: Json = False,
) -> None:
    """Parameters, MACs, activations and convolutions, as the organisers count and honestly."""
    from esrjax.cli.tables import show_cost
    from esrjax.contest.costs import costs

    files = by_name(checkpoint, [name])
    counted = costs(name, side=side, files=files, sizes=sizes(size))
    if as_json:
        print_json(_figures(name, counted, parts))
    else:
        show_cost(name, counted, side, parts)


def _figures(name: str, counted: Any, parts: bool) -> dict[str, Any]:
    figures = {"method": name, **vars(counted)}
    work = figures.pop("work")
    return {**figures, "parts": [vars(piece) for piece in work]} if parts else figures
