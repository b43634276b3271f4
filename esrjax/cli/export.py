"""The command `export`: ONNX and StableHLO files."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from esrjax.cli.options import (
    BadOption,
    CheckpointOption,
    HparamsOption,
    JsonOption,
    MethodArgument,
    parse_hparams,
    print_json,
)


def export(
    name: MethodArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="The file to write.", show_default="METHOD.onnx or .stablehlo"
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    format: Annotated[
        Literal["onnx", "stablehlo"], typer.Option(help="The format to write.")
    ] = "onnx",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"],
        typer.Option(help="Compute dtype; inputs and outputs stay float32."),
    ] = "float32",
    hparams: HparamsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export a method to ONNX or StableHLO, for images of any size, and compare it with JAX."""
    from dataclasses import asdict

    from esrjax.bridge import export as interop
    from esrjax.cli.tables import show_export
    from esrjax.model import open_method

    path = _output_path(name, output, format)
    interop.check_libraries(format)
    model = open_method(name, checkpoint, parse_hparams(hparams))
    metadata = interop.export(model, path, format, dtype)
    if as_json:
        print_json({"file": str(path), **asdict(metadata)})
    else:
        show_export(path, metadata)


def _output_path(name: str, output: Path | None, format: str) -> Path:
    path = output or Path(f"{name}.{format}")
    if (path.suffix == ".onnx") == (format == "onnx"):
        return path
    raise BadOption(
        f"{path.name!r} does not have the suffix of the format {format!r}",
        rule="files of the format onnx end in .onnx, and no others do",
        location=str(path),
        remedy=f"name it {path.stem}.{format}, or change --format",
    )
