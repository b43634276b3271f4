"""Verbs about weights and networks: weights, convert, cost."""

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
    group = typer.Typer(help="Published weights: what there is, and how to have it.")
    for verb in (get, list_):
        group.command(verb.__name__.rstrip("_"))(verb)
    app.add_typer(group, name="weights", no_args_is_help=True)


def get(
    name: Name,
    which: Annotated[
        str | None, typer.Option(help="Of several, by their key.", show_default="the first")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", help="The folder.", show_default="$ESRJAX_DATA/weights, or the cache"),
    ] = None,
) -> None:
    """Download the published weights of a method; what broke off is gone on with."""
    from esrjax import published, registry
    from esrjax.cli.progress import download_bar

    weights = published.weights_of(name, registry.plain(name), which)
    with download_bar() as tell:
        path = published.get(name, weights, output, tell)
    typer.echo(f"{path}: sha256 {weights.sha256} is right")


def list_(as_json: Json = False) -> None:
    """The published weights of every method, and which of them lie here."""
    from esrjax import published, registry
    from esrjax.cli.tables import show_table
    from esrjax.method import Method

    rows: list[dict[str, Any]] = []
    for name in registry.names():
        method = registry.method(name)
        for key, weights in method.weights.items() if isinstance(method, Method) else ():
            here = published.held(weights)
            said = {"method": name, "weights": key, "form": weights.form}
            rows.append({**said, "sha256": weights.sha256, "url": weights.url, "file": here})
    if as_json:
        print_json([{**row, "file": row["file"] and str(row["file"])} for row in rows])
        return
    columns = ("method", "weights", "form", "sha256", "on this machine")
    show_table([dict(zip(columns, _row(row), strict=True)) for row in rows], columns)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    here = str(row["file"] or ("no" if row["url"] else "no, and no address"))
    return row["method"], row["weights"], row["form"], f"{row['sha256'][:12]}…", here


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
