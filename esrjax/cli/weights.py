"""The commands `weights list | get | convert`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from esrjax.cli.options import (
    HparamsOption,
    JsonOption,
    MethodArgument,
    command_group,
    parse_hparams,
    print_json,
)

app = command_group("Published weights: list, download and convert them.")


@app.command("list")
def list_weights(as_json: JsonOption = False) -> None:
    """List the published weights of every method, and the local file if downloaded."""
    from esrjax import hub, registry
    from esrjax.cli.output import show_table
    from esrjax.method import Method

    rows: list[dict[str, Any]] = []
    for name in registry.names():
        entry = registry.get_entry(name)
        for key, weights in entry.weights.items() if isinstance(entry, Method) else ():
            row = {"method": name, "weights": key, "form": weights.form}
            file = hub.find_local(weights)
            rows.append({**row, "sha256": weights.sha256, "url": weights.url, "file": file})
    if as_json:
        print_json([{**row, "file": row["file"] and str(row["file"])} for row in rows])
        return
    columns = ("method", "weights", "form", "sha256", "local file")
    show_table([dict(zip(columns, _cells(row), strict=True)) for row in rows], columns)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    file = str(row["file"] or ("not downloaded" if row["url"] else "no download URL"))
    return row["method"], row["weights"], row["form"], f"{row['sha256'][:12]}…", file


@app.command()
def get(
    name: MethodArgument,
    key: Annotated[
        str | None,
        typer.Option(
            help="Key of the weights: the column `weights` of `esrjax weights list`.",
            show_default="the first",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="The folder to download into.",
            show_default="$ESRJAX_DATA/weights, or the user's cache",
        ),
    ] = None,
) -> None:
    """Download the published weights of a method; an interrupted download is resumed."""
    from esrjax import hub, registry
    from esrjax.cli.output import download_bar

    weights = hub.find_weights(name, registry.get_method(name), key)
    with download_bar() as on_progress:
        path = hub.download(name, weights, output, on_progress)
    typer.echo(f"{path}: sha256 {weights.sha256} verified")


@app.command()
def convert(
    name: MethodArgument,
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A .pth or .safetensors file, or a run directory.", metavar="CHECKPOINT"
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    to: Annotated[
        Literal["safetensors", "torch"] | None,
        typer.Option(
            help="The format to write.", show_default="safetensors by that suffix, else torch"
        ),
    ] = None,
    form: Annotated[
        Literal["same", "deploy"],
        typer.Option(
            help="same: as in the checkpoint; deploy: with its branches fused (reparameterized)."
        ),
    ] = "same",
    hparams: HparamsOption = None,
) -> None:
    """Check a checkpoint against its method and write it as .safetensors or .pth."""
    from esrjax.interop import convert as conversion

    result = conversion.convert(
        name,
        checkpoint,
        output,
        to=conversion.checkpoint_format(output, to),
        form=form,
        hparams=parse_hparams(hparams),
    )
    typer.echo(
        f"{output}: {name}, {result.form} form, {result.num_tensors} tensors, "
        f"{result.num_params} parameters"
    )
