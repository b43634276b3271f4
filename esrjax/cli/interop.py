"""The commands `parity METHOD` and `parity verify FILE`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand
from typer.main import get_command

from esrjax.cli.options import (
    CHECKPOINTS_HELP,
    CheckpointOption,
    HparamsOption,
    ImplementationOption,
    JsonOption,
    MethodArgument,
    parse_checkpoints,
    parse_hparams,
    print_json,
)
from esrjax.errors import InvalidArgument

if TYPE_CHECKING:
    from esrjax.interop.array_diff import OptimizerPair
    from esrjax.interop.parity import Comparison, GoldenComparison
    from esrjax.interop.torch_compare import LiveComparison, QualityComparison
    from esrjax.interop.trace import LayerReport


LEARNING_RATE = 1e-3  # of the optimizer steps that are compared


class ParityCommand(TyperCommand):
    """A command whose first argument may be the subcommand `verify` instead of a method."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Return the context of `verify` where that is the first argument, else of the command."""
        if args[:1] == ["verify"]:
            return get_command(_verify_app).make_context("parity verify", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


_verify_app = typer.Typer(add_completion=False)


def parity(
    name: MethodArgument,
    golden: Annotated[
        Path | None,
        typer.Option(
            help="Compare with outputs of PyTorch, stored with their inputs in an .npz file.",
            metavar="FILE.npz",
        ),
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(
            help="Compare with a live PyTorch network: outputs, layers, gradients, optimizer "
            "steps. Runs the code in FILE.py.",
            metavar="FILE.py:CLASS",
        ),
    ] = None,
    torch_args: Annotated[
        str, typer.Option(help="Keyword arguments of the PyTorch class.", metavar="JSON")
    ] = "{}",
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            help=CHECKPOINTS_HELP,
            metavar="[METHOD=]FILE",
            show_default="shipped weights; with --torch random weights",
        ),
    ] = None,
    hparams: HparamsOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="With --torch: also compare PSNR on a dataset (its name or its folder).",
            metavar="DATASET",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random images and weights.", min=0)] = 0,
    report: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Write a parity report: to a .json file, or into the metadata of a .safetensors "
            "checkpoint.",
            metavar="FILE",
        ),
    ] = None,
    implementation: ImplementationOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare a network with its PyTorch original; exit code 0 if they agree, else 1.

    `esrjax parity verify FILE` repeats the comparison of a parity report.
    """
    from esrjax import registry
    from esrjax.interop import parity_report
    from esrjax.interop.parity import ParityRequest
    from esrjax.interop.parity import run as compare

    files = parse_checkpoints(checkpoint, [name])
    if registry.is_ensemble(name):
        stored = None if torch or data or report else golden
        comparison = _compare_ensemble(name, files, parse_hparams(hparams), stored, implementation)
        _print(comparison, as_json)
        raise typer.Exit(not comparison.passed)
    request = ParityRequest(
        method=name,
        hparams=parse_hparams(hparams),
        checkpoint=_path(files.get(name)),
        golden=_path(golden),
        torch=torch,
        torch_args=_torch_args(torch_args),
        data=data,
        seed=seed,
        implementation=implementation,
    )
    if report is not None:
        parity_report.check_writable(report, files.get(name))
    result = compare(request, _optimizer_pairs() if torch else ())
    _print(result.comparison, as_json)
    if report is not None:
        parity_report.write(report, parity_report.make_report(request, result))
    raise typer.Exit(not result.comparison.passed)


@_verify_app.command()
def verify(
    file: Annotated[
        Path,
        typer.Argument(
            help="A parity report: a .json file, or a .safetensors file with one.", metavar="FILE"
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Repeat the comparison of a parity report; exit code 0 if reproduced and in agreement."""
    from esrjax.cli.output import print_unwrapped
    from esrjax.interop import parity_report

    pairs = _optimizer_pairs() if parity_report.read(file).request.torch else ()
    verification = parity_report.verify(file, pairs)
    if as_json:
        print_json(verification.as_dict())
    else:
        for line in verification.differences:
            print_unwrapped(f"not reproduced: {line}")
        for line in verification.notes:
            print_unwrapped(f"note: {line}")
        status = "reproduced" if not verification.differences else "not reproduced"
        equal = "equal" if verification.report.passed else "not equal"
        method = verification.report.request.method
        print_unwrapped(f"{method}: {status} (reported {equal} to PyTorch)")
    raise typer.Exit(not verification.passed)


def _optimizer_pairs() -> tuple[OptimizerPair, ...]:
    """Adam, AdamW and Muon of PyTorch, each with its counterpart in optax.

    Both have their defaults, except for the epsilon of Muon, which the two sides apply
    differently. Muon is compared for one step: from the second step on, optax corrects the bias of
    the momentum and PyTorch does not. Weights are `(out, in)`, as in PyTorch.
    """
    import jax
    import optax
    from optax import contrib

    from esrjax.interop.array_diff import OptimizerPair

    grad_scales, eps = (1.0, -0.5), 1e-30
    adamw_kwargs = {"lr": LEARNING_RATE, "weight_decay": 0.01}
    muon_kwargs = {"lr": LEARNING_RATE, "weight_decay": 0.0, "eps": eps}
    axes = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    muon = contrib.muon(
        LEARNING_RATE,
        eps=eps,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: axes, params),
    )
    return (
        OptimizerPair(
            torch_name="Adam",
            torch_kwargs={"lr": LEARNING_RATE},
            optax_tx=optax.adam(LEARNING_RATE),
            grad_scales=grad_scales,
        ),
        OptimizerPair(
            torch_name="AdamW",
            torch_kwargs=adamw_kwargs,
            optax_tx=optax.adamw(LEARNING_RATE, weight_decay=0.01),
            grad_scales=grad_scales,
        ),
        OptimizerPair(torch_name="Muon", torch_kwargs=muon_kwargs, optax_tx=muon, only_2d=True),
    )


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _torch_args(text: str) -> dict[str, Any]:
    try:
        kwargs = json.loads(text)
    except ValueError as error:
        raise _bad_torch_args(text, f"not JSON: {error}") from error
    if not isinstance(kwargs, dict):
        raise _bad_torch_args(text, "not a JSON object")
    return kwargs  # pyright: ignore[reportUnknownVariableType] # keys of JSON are strings


def _bad_torch_args(text: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"Invalid --torch-args {text!r}: {reason}",
        rule="the keyword arguments of the class are a JSON object",
        remedy="""for example --torch-args '{"channels": 28}'""",
    )


# --- output ------------------------------------------------------------------------------------


def _print(comparison: Comparison, as_json: bool) -> None:
    from esrjax.cli.output import show_parity

    if as_json:
        print_json(comparison.as_dict())
    elif hasattr(comparison, "layers"):
        _show_live(comparison)  # pyright: ignore[reportArgumentType]
    else:
        show_parity(comparison)  # pyright: ignore[reportArgumentType]


def _show_live(comparison: LiveComparison) -> None:
    from esrjax.cli.output import print_unwrapped, show_table

    rows = [
        {
            "case": diff.name,
            "precision": diff.precision,
            "max |difference|": f"{diff.max_abs_diff:.2e}",
            "tolerance": f"{diff.tolerance:.2e}",
            "changed uint8": diff.num_changed_u8,
            "worst": diff.worst_key,
            "passed": diff.passed,
        }
        for diff in comparison.diffs
    ]
    show_table(rows, list(rows[0]))
    _show_layers(comparison.layers)
    if comparison.quality is not None:
        _show_quality(comparison.quality)
    for note in comparison.notes:
        print_unwrapped(f"note: {note}")
    result = "[green]equal[/green]" if comparison.passed else "[red]not equal[/red]"
    print_unwrapped(
        f"{comparison.method}, {comparison.form} form: {result} to PyTorch", markup=True
    )


def _show_layers(layers: LayerReport) -> None:
    from esrjax.cli.output import print_unwrapped

    divergence = layers.first_divergence
    if divergence is None:
        print_unwrapped(f"layers: equal wherever both have them ({layers.num_compared} arrays)")
    else:
        print_unwrapped(f"[bold]first divergence[/bold] {divergence.location}", markup=True)
        print_unwrapped(f"  {divergence.description}")
    _show_paths("different boundaries, without effect", layers.harmless_diffs)
    _show_paths("only in PyTorch", layers.torch_only)
    _show_paths("only in JAX", layers.jax_only)
    _show_paths("shapes cannot be compared", layers.shape_mismatch)


def _show_paths(title: str, paths: Sequence[str]) -> None:
    from esrjax.cli.output import print_unwrapped

    if paths:
        more = f" and {len(paths) - 8} more" if len(paths) > 8 else ""
        print_unwrapped(f"{title}: {', '.join(paths[:8])}{more}")


def _show_quality(quality: QualityComparison) -> None:
    from esrjax.cli.output import print_unwrapped

    psnr = f"JAX {quality.jax_psnr:.4f} dB, PyTorch {quality.torch_psnr:.4f} dB"
    print_unwrapped(
        f"{quality.num_images} images, {quality.spec}: {psnr}: {quality.diff_mdb:+.3f} mdB; "
        f"{quality.num_changed_u8:,} of {quality.num_values:,} uint8 values differ"
    )


def _compare_ensemble(
    name: str,
    files: dict[str, Path],
    hparams: dict[str, Any],
    golden: Path | None,
    implementation: Literal["auto", "reference", "kernel"],
) -> GoldenComparison:
    """Compare an ensemble with the images in a golden file: of every branch, and fused.

    Args:
        name: The ensemble.
        files: Checkpoints by member.
        hparams: Hyper-parameters of the members, by `MEMBER.KEY`.
        golden: The .npz file.
        implementation: Implementation of the operations.

    Raises:
        InvalidArgument: `golden` is None.
    """
    if golden is None:
        raise InvalidArgument(
            f"{name!r} is an ensemble: it can only be compared with --golden",
            rule="--torch, --data and -o compare single networks; an ensemble is compared with "
            "stored images of its branches and of their fusion",
            remedy="use --golden FILE.npz alone, or name one of the members",
        )
    from esrjax.inference import open_model
    from esrjax.interop import ensemble

    model: Any = open_model(name, files, hparams)
    return ensemble.compare(model, golden, implementation)


# --------------------------------------------------------------------------------------------------
# The command `export`: ONNX and StableHLO files.
# --------------------------------------------------------------------------------------------------


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

    from esrjax.cli.output import show_export
    from esrjax.inference import open_method
    from esrjax.interop import export as interop

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
    raise InvalidArgument(
        f"{path.name!r} does not have the suffix of the format {format!r}",
        rule="files of the format onnx end in .onnx, and no others do",
        location=str(path),
        remedy=f"name it {path.stem}.{format}, or change --format",
    )
