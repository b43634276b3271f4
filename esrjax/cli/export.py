"""The verb about engines: export."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from esrjax.cli.options import BadOption, Checkpoint, Json, Name, Size, print_json, sizes


def register(app: typer.Typer) -> None:
    """Add this verb to the command."""
    app.command()(export)


def export(
    name: Name,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file.", show_default="NAME.onnx or .stablehlo"),
    ] = None,
    checkpoint: Checkpoint = None,
    kind: Annotated[
        Literal["onnx", "stablehlo"], typer.Option("--format", help="What is written.")
    ] = "onnx",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(help="What it calculates in; pictures stay float32."),
    ] = "float32",
    size: Size = None,
    as_json: Json = False,
) -> None:
    """Write a method for engines: one file, pictures of any size, checked against JAX."""
    from dataclasses import asdict

    from esrjax.bridge import export as bridge
    from esrjax.cli.tables import show_export
    from esrjax.model import open_method

    target = _target(name, output, kind)
    bridge.require(kind)
    card = bridge.export(open_method(name, checkpoint, sizes(size)), target, kind, dtype)
    if as_json:
        print_json({"file": str(target), **asdict(card)})
    else:
        show_export(target, card)


def _target(name: str, output: Path | None, kind: str) -> Path:
    target = output or Path(f"{name}.{kind}")
    if (target.suffix == ".onnx") == (kind == "onnx"):
        return target
    raise BadOption(
        f"{target.name!r} is no name for a file of the format {kind!r}",
        rule="files of the format onnx end in .onnx, and no others do",
        place=str(target),
        remedy=f"name it {target.stem}.{kind}, or change --format",
    )
