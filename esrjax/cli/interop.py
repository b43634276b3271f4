"""The commands `parity METHOD`, `parity verify FILE` and `export`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Option
from typer.main import get_command

from esrjax import io, registry
from esrjax.cli import options
from esrjax.cli.output import (
    print_json,
    print_lr_source,
    print_notes,
    print_unwrapped,
    show_table,
)
from esrjax.errors import InvalidArgument, list_some

if TYPE_CHECKING:
    from esrjax.interop.export import ExportMetadata
    from esrjax.interop.parity import GoldenComparison
    from esrjax.interop.torch_compare import LiveComparison
    from esrjax.interop.torch_watch import CountsReport, ExerciseReport
    from esrjax.interop.trace import LayerReport


class ParityCommand(options.Command):
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
    name: options.MethodArgument,
    golden: Path | None = None,
    torch: str | None = None,
    torch_args: str = "{}",
    checkpoint: Annotated[
        list[str] | None, options.checkpoints("shipped weights; with --torch random weights")
    ] = None,
    hparams: options.HparamsOption = None,
    data: str | None = None,
    seed: Annotated[int, Option(min=0)] = 0,
    report: Annotated[Path | None, options.output()] = None,
    implementation: options.ImplementationOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Compare a network with its PyTorch original; exit code 0 if they agree, else 1.

    `esrjax parity verify FILE` repeats the comparison of a parity report.

    Args:
        golden (FILE.npz): Compare with outputs of PyTorch, stored with their inputs in an .npz
            file.
        torch (FILE.py:CLASS): Compare with a live PyTorch network: outputs, layers, gradients,
            optimizer steps. Runs the code in FILE.py.
        torch_args (JSON): Keyword arguments of the PyTorch class.
        data (DATASET): With --torch: also compare PSNR on a dataset (its name or its folder).
        seed: Seed of random images and weights.
        report (FILE): Write a parity report: to a .json file, or into the metadata of a
            .safetensors checkpoint.
    """
    from esrjax.interop import parity_report
    from esrjax.interop.parity import ParityRequest, image_pairs, optimizer_pairs, run

    files, values = options.parse_checkpoints(checkpoint, [name]), options.parse_hparams(hparams)
    if registry.is_ensemble(name):
        stored = None if torch or data or report else golden
        comparison = _compare_ensemble(name, files, values, stored, implementation)
        _show(comparison, as_json)
        raise typer.Exit(not comparison.passed)
    file = files.get(name)
    request = ParityRequest(
        method=name,
        hparams=values,
        checkpoint=file and str(file),
        golden=golden and str(golden),
        torch=torch,
        torch_args=_torch_args(torch_args),
        data=data,
        seed=seed,
        implementation=implementation,
    )
    if report is not None:
        io.check_outputs([report], [golden, None if report.suffix == ".safetensors" else file])
        parity_report.check_writable(report, file)
    if data is not None:
        print_lr_source(data, image_pairs(request))
    result = run(request, optimizer_pairs() if torch else ())
    _show(result.comparison, as_json)
    if report is not None:
        parity_report.write(report, parity_report.make_report(request, result))
    raise typer.Exit(not result.comparison.passed)


def _compare_ensemble(
    name: str, files: Mapping[str, Path], hparams: Any, golden: Path | None, implementation: Any
) -> GoldenComparison:
    """Compare an ensemble with the images in a golden file: of every branch, and fused."""
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


def _torch_args(text: str) -> dict[str, Any]:
    try:
        kwargs, reason = io.parse_json(text), "not a JSON object"
    except ValueError as error:
        kwargs, reason = None, f"not JSON: {error}"
    if not isinstance(kwargs, dict):
        raise InvalidArgument(
            f"Invalid --torch-args {text!r}: {reason}",
            rule="the keyword arguments of the class are a JSON object",
            remedy="""for example --torch-args '{"channels": 28}'""",
        )
    return kwargs  # pyright: ignore[reportUnknownVariableType] # keys of JSON are strings


@_verify_app.command(cls=options.Command)
def verify(file: Path, as_json: options.JsonOption = False) -> None:
    """Repeat the comparison of a parity report; exit code 0 if reproduced and in agreement.

    Args:
        file (FILE): A parity report: a .json file, or a .safetensors file with one.
    """
    from esrjax.interop import parity, parity_report

    request = parity_report.read(file).request
    pairs = parity.optimizer_pairs() if request.torch else ()
    if request.data is not None:
        print_lr_source(request.data, parity.image_pairs(request))
    verification = parity_report.verify(file, pairs)
    if as_json:
        print_json(verification.as_dict())
    else:
        print_unwrapped(*(f"not reproduced: {line}" for line in verification.differences))
        print_unwrapped(*(f"note: {line}" for line in verification.notes))
        status = "reproduced" if not verification.differences else "not reproduced"
        equal = "equal" if verification.report.passed else "not equal"
        method = verification.report.request.method
        print_unwrapped(f"{method}: {status} (reported {equal} to PyTorch)")
    raise typer.Exit(not verification.passed)


# --- output of `parity` ------------------------------------------------------------------------


def _show(comparison: Any, as_json: bool) -> None:
    """Print a `GoldenComparison` or `LiveComparison`."""
    if (quality := getattr(comparison, "quality", None)) is not None:
        print_notes(quality.notes)
    if as_json:
        print_json(comparison.as_dict())
        return
    is_live = hasattr(comparison, "layers")
    columns = ["case", "shape", "max |difference|", "tolerance", "changed uint8", "precision"]
    if is_live:
        columns = ["case", "precision", *columns[2:5], "worst case", "worst weight"]
    rows = [
        {
            "case": diff.name,
            "shape": "x".join(map(str, diff.shape)),
            "precision": diff.precision,
            "max |difference|": f"{diff.max_abs_diff:.2e}",
            "tolerance": f"{diff.tolerance:.2e}",
            "changed uint8": diff.num_changed_u8,
            "worst case": diff.case,
            "worst weight": diff.worst_key,
            "passed": diff.passed,
        }
        for diff in comparison.diffs
    ]
    show_table(rows, [*columns, "passed"])
    print_unwrapped(*(_live_notes(comparison) if is_live else _golden_notes(comparison)))
    name = f"{comparison.method}, {comparison.form} form" if is_live else comparison.method
    result = "[green]equal[/green]" if comparison.passed else "[red]not equal[/red]"
    print_unwrapped(f"{name}: {result} to PyTorch", markup=True)


def _golden_notes(comparison: GoldenComparison) -> Iterator[str]:
    for diff in comparison.diffs:
        if diff.num_changed_u8_unperturbed is not None:
            changed = f"{diff.num_changed_u8_unperturbed:,} changed uint8 values"
            yield (
                f"{diff.name}: rounding tie; compared with LR moved by one rounding error "
                f"({changed} without)"
            )
    if comparison.unchecked_keys:
        yield f"not compared: {', '.join(comparison.unchecked_keys)}"


def _live_notes(comparison: LiveComparison) -> Iterator[str]:
    cases = comparison.cases
    yield f"{len(cases)} cases, 2 images each: {list_some(cases, 3, '; ')}"
    yield from _layer_notes(comparison.layers)
    yield from _exercise_notes(comparison.exercise)
    yield from _counts_notes(comparison.counts)
    if (quality := comparison.quality) is not None:
        psnr = f"JAX {quality.jax_psnr:.4f} dB, PyTorch {quality.torch_psnr:.4f} dB"
        yield (
            f"{quality.num_images} images, {quality.spec}: {psnr}: {quality.diff_mdb:+.3f} mdB; "
            f"{quality.num_changed_u8:,} of {quality.num_values:,} uint8 values differ"
        )
    for note in comparison.notes:
        yield f"note: {note}"


def _layer_notes(layers: LayerReport) -> Iterator[str]:
    if (divergence := layers.first_divergence) is None:
        yield f"layers: equal wherever both have them ({layers.num_compared:,} arrays)"
    else:
        yield f"first divergence {divergence.location}"
        yield f"  {divergence.description}"
        if not divergence.persists:
            yield (
                "  the modules after it agree: a mistake that the rest hides, or modules that "
                "contain different parts (then give the JAX module another name, or map it in "
                "Method.torch_names)"
            )
    lists = {
        "differ, but the modules after them agree": layers.hidden_diffs,
        "different boundaries, without effect": layers.boundary_diffs,
        "only in PyTorch": layers.torch_only,
        "only in JAX": layers.jax_only,
        "shapes cannot be compared": layers.shape_mismatch,
    }
    yield from _titled_lists(lists)


def _exercise_notes(exercise: ExerciseReport) -> Iterator[str]:
    lists = {
        "not exercised, never opens": exercise.closed,
        "not exercised, output never varies": exercise.constant,
        "exercised on one side only": exercise.one_sided,
        "channels that never opened": exercise.dead_units,
        "gradient zero everywhere": exercise.zero_gradients,
    }
    yield from _titled_lists(lists)


def _titled_lists(lists: Mapping[str, Sequence[str]]) -> Iterator[str]:
    return (f"{title}: {list_some(paths, 8)}" for title, paths in lists.items() if paths)


def _counts_notes(counts: CountsReport) -> Iterator[str]:
    height, width = counts.image_size
    labels = {"conv_macs": "MACs of convolutions", "matmul_macs": "MACs of matrix products"}
    equal = [labels.get(name, name) for name in vars(counts.jax) if name not in counts.differences]
    yield f"counts at {height}x{width}, equal: {', '.join(equal) or 'none'}"
    for name, (jax_count, torch_count) in counts.differences.items():
        label = labels.get(name, name)
        yield f"counts differ: {label}: JAX {jax_count:,}, PyTorch {torch_count:,}"
    for line in counts.not_counted:
        yield f"the organisers' counter loses {line}"


# --- export ------------------------------------------------------------------------------------


def export(
    name: options.OptionalMethodArgument = None,
    output: Annotated[Path | None, options.output("METHOD.onnx or .stablehlo")] = None,
    checkpoint: options.CheckpointOption = None,
    format: Literal["onnx", "stablehlo"] = "onnx",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    hparams: options.HparamsOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Export a method to ONNX or StableHLO, for images of any size, and compare it with JAX.

    Args:
        output: The file to write.
        format: The format to write.
        dtype: Compute dtype; inputs and outputs stay float32.
    """
    from esrjax.inference import open_method
    from esrjax.interop import export as interop

    if output and (output.suffix == ".onnx") != (format == "onnx"):
        raise InvalidArgument(
            f"{output.name!r} does not have the suffix of the format {format!r}",
            rule="files of the format onnx end in .onnx, and no others do",
            location=str(output),
            remedy=f"name it {output.stem}.{format}, or change --format",
        )
    interop.check_libraries(format)
    model = open_method(name, checkpoint, options.parse_hparams(hparams))
    path = output or Path(f"{model.name}.{format}")
    metadata = interop.export(model, path, format, dtype)
    if as_json:
        print_json({"file": path, **vars(metadata)})
    else:
        _show_export(path, metadata)


def _show_export(path: Path, metadata: ExportMetadata) -> None:
    """Print what was written, and its difference from JAX in every dtype that was tried."""
    sizes = ", ".join(f"{h}x{w}" for h, w in metadata.checks[metadata.dtype].image_sizes)
    print_unwrapped(
        f"{path}: {metadata.method}, {metadata.dtype}, {metadata.layout}, "
        f"values in [0, {metadata.data_range:g}]"
    )
    rows = [
        {
            "dtype": dtype,
            "max |difference|": f"{check.max_abs_diff:.1e} of the data range",
            "PSNR": "equal" if check.psnr is None else f"{check.psnr:.1f} dB",
            "accurate": "yes (written)"
            if dtype == metadata.dtype
            else check.within_tolerance(dtype),  # pyright: ignore[reportArgumentType]
        }
        for dtype, check in metadata.checks.items()
    ]
    show_table(rows)
    print_unwrapped(f"compared with JAX in float32, at {sizes}")
