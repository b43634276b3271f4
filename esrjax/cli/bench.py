"""The command `bench`: interleaved timing of methods, in JAX and in other engines."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from esrjax.cli.options import (
    HparamsOption,
    JsonOption,
    MethodsArgument,
    parse_hparams,
    parse_image_size,
    print_json,
)
from esrjax.cli.output import print_unwrapped
from esrjax.errors import InvalidArgument, TorchCompileError

if TYPE_CHECKING:
    from esrjax.bench.bench import Backend, CompiledCase
    from esrjax.interop.torch_model import TorchModel
    from esrjax.interop.torch_optim import TorchMode
    from esrjax.method import Method


IMPLEMENTATIONS = ("auto", "reference", "kernel")
PRECISIONS = ("float32", "bfloat16")
# Name of the engine in the rows -> execution mode of PyTorch.
EAGER_MODES: Mapping[str, TorchMode] = {
    "pytorch": "eager",
    "pytorch-channels-last": "channels-last",
}
COMPILED_MODE: Mapping[str, TorchMode] = {"pytorch-compiled": "compiled"}


def bench(
    names: MethodsArgument,
    image_size: Annotated[
        str, typer.Option(help="LR image sizes, comma-separated, pixels.", metavar="HxW,...")
    ] = "256x256",
    hparams: HparamsOption = None,
    implementation: Annotated[
        str,
        typer.Option(
            help="Implementations of the operations, comma-separated: auto, reference, kernel."
        ),
    ] = "auto",
    precision: Annotated[
        str,
        typer.Option(help="Precisions of weights and images, comma-separated: float32, bfloat16."),
    ] = "float32",
    seconds: Annotated[
        float, typer.Option(help="Timing budget for each row of the table, seconds.")
    ] = 2.0,
    engine: Annotated[
        Literal["jax", "onnxruntime", "both"],
        typer.Option(help="Inference engine; both are timed interleaved."),
    ] = "jax",
    torch: Annotated[
        list[str] | None,
        typer.Option(
            help="Also time a PyTorch implementation of a method, interleaved. Runs the code in "
            "FILE.py. Repeatable.",
            metavar="[METHOD=]FILE.py:CLASS",
        ),
    ] = None,
    torch_compile: Annotated[
        bool,
        typer.Option("--torch-compile", help="With --torch: also time it under torch.compile."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Time methods interleaved in one process: latency, roofline, compilation, memory."""
    shapes = [parse_image_size(text) for text in image_size.split(",")]
    implementations = _choices("--implementation", implementation, IMPLEMENTATIONS)
    precisions = _choices("--precision", precision, PRECISIONS)
    if engine != "jax" and precisions != ["float32"]:
        raise _only_float32(engine)
    if torch_compile and not torch:
        raise _needs_torch()
    from esrjax import registry
    from esrjax.bench import bench as challenge
    from esrjax.bench.bench import Variants

    methods = {name: registry.get_method(name) for name in names}
    sources = dict(_torch_source(text, names) for text in torch or [])
    kwargs = parse_hparams(hparams)
    modes = dict(EAGER_MODES) | (dict(COMPILED_MODE) if torch_compile else {})
    report = challenge.bench(
        methods,
        shapes,
        kwargs,
        seconds,
        _backends(engine),
        variants=Variants(implementations=implementations, precisions=precisions),
        torch_factories=_torch_factories(sources, methods, kwargs, modes),
    )
    if as_json:
        print_json(report)
    else:
        show_bench(report)


# --- engines -----------------------------------------------------------------------------------


def _backends(engine: str) -> dict[str, Backend]:
    """The backends to time, by the name of the engine in the rows."""
    from esrjax.bench import bench as cases

    backends = {} if engine == "onnxruntime" else cases.jax_backend()
    if engine != "jax":
        from esrjax.interop.onnx import runtime

        backends[f"onnxruntime-{runtime.device()}"] = cases.Backend(factory=_onnx_factory)
    return backends


def _onnx_factory(name: str, method: Method, net: Any) -> Callable[[Any], CompiledCase]:
    """A network in ONNX Runtime, exported once for all image sizes."""
    from esrjax.bench.bench import CompiledCase
    from esrjax.interop import engines

    forward = functools.cache(lambda: engines.onnx_forward(name, method, net))

    def compile_case(lr: Any) -> CompiledCase:
        start = time.perf_counter()
        call = functools.partial(forward(), lr)
        return CompiledCase(call=call, compile_s=time.perf_counter() - start)

    return compile_case


def _torch_factories(
    sources: Mapping[str, str],
    methods: Mapping[str, Method],
    kwargs: dict[str, Any],
    modes: Mapping[str, TorchMode],
) -> dict[str, dict[str, Callable[[Any], CompiledCase]]]:
    """The user's PyTorch networks, built with `kwargs`, by method and engine."""
    if not sources:
        return {}
    import jax

    if jax.default_backend() != "cpu":
        raise _needs_cpu(jax.default_backend())
    from esrjax.interop.onnx.runtime import import_library

    import_library("torch", "torch")
    from esrjax.interop import torch_model

    models = {
        name: torch_model.build(torch_model.parse_source(s, kwargs)) for name, s in sources.items()
    }
    return {
        name: {label: _torch_factory(model, methods[name].scale, m) for label, m in modes.items()}
        for name, model in models.items()
    }


def _torch_factory(model: TorchModel, scale: int, mode: TorchMode) -> Callable[[Any], CompiledCase]:
    from esrjax.bench.bench import CompiledCase, SkipBackend
    from esrjax.interop import torch_optim

    def compile_case(lr: Any) -> CompiledCase:
        start = time.perf_counter()
        try:
            call = torch_optim.prepare(model, lr, scale, mode)
        except TorchCompileError as error:
            raise SkipBackend(error.problem) from error
        duration = time.perf_counter() - start
        return CompiledCase(call=call, compile_s=duration if mode == "compiled" else None)

    return compile_case


# --- options -----------------------------------------------------------------------------------


def _choices(option: str, text: str, allowed: Iterable[str]) -> list[Any]:
    """`"a,b" -> ["a", "b"]`: different values, all of them allowed."""
    values = [value.strip() for value in text.split(",")]
    if len(set(values)) < len(values) or not set(values) <= set(allowed):
        raise InvalidArgument(
            f"Invalid {option} {text!r}",
            rule=f"one or several of {', '.join(allowed)}, each once, comma-separated",
            remedy=f"for example {option} {','.join(allowed)}",
        )
    return values


def _torch_source(text: str, names: list[str]) -> tuple[str, str]:
    """`METHOD=FILE.py:CLASS`; for a single method also without its name."""
    name, equals, source = text.partition("=")
    if equals and name in names:
        return name, source
    if len(names) == 1:
        return names[0], text
    raise InvalidArgument(
        f"--torch {text!r} does not name its method",
        rule=f"with several methods it is METHOD=FILE.py:CLASS, METHOD being one of "
        f"{', '.join(names)}",
        remedy=f"for example --torch {names[0]}={source or text}",
    )


def _only_float32(engine: str) -> InvalidArgument:
    return InvalidArgument(
        f"--precision cannot be combined with --engine {engine}",
        rule="ONNX Runtime runs the exported network in float32 only",
        remedy="leave --precision out, or use --engine jax",
    )


def _needs_torch() -> InvalidArgument:
    return InvalidArgument(
        "--torch-compile needs --torch",
        rule="--torch-compile applies to the PyTorch networks of --torch",
        remedy="name a PyTorch network with --torch, or leave --torch-compile out",
    )


def _needs_cpu(backend: str) -> InvalidArgument:
    return InvalidArgument(
        f"--torch needs JAX on the CPU, not on {backend!r}",
        rule="PyTorch networks run on the CPU, and both sides are timed on the same device",
        remedy="set JAX_PLATFORMS=cpu",
    )


# --------------------------------------------------------------------------------------------------
# The output of `bench`: a table with one row for each method, image size and engine.
# --------------------------------------------------------------------------------------------------


Row = Mapping[str, Any]  # of `esrjax.bench.bench.bench`
COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "method": lambda row: row["method"],
    "image size": lambda row: row["image_size"],
    "engine": lambda row: row["engine"],
    "implementation": lambda row: row["implementation"] or "-",
    "precision": lambda row: row["precision"],
    "median, ms": lambda row: f"{row['median_ms']:.3f}",
    "95 % interval": lambda row: f"[{row['low_ms']:.3f}, {row['high_ms']:.3f}]",
    "vs. eager PyTorch": lambda row: _ratio(row, "torch_eager_ratio"),
    "vs. torch.compile": lambda row: _ratio(row, "torch_compile_ratio"),
    "roofline": lambda row: _roofline(row),
    "compile time, s": lambda row: _number(row["compile_s"], ".2f"),
    "compilations": lambda row: str(row["compilations"]),
    "memory, MiB": lambda row: _number(row["peak_mib"], ".1f"),
}
LEFT_ALIGNED = ("method", "image size", "engine", "implementation", "precision")
# Columns that are shown only where the rows of JAX have different values.
VARIANTS = ("implementation", "precision")
# Columns that are shown only where a row has a value, with its key.
RATIOS = {
    "vs. eager PyTorch": "torch_eager_ratio",
    "vs. torch.compile": "torch_compile_ratio",
}


def show_bench(report: Mapping[str, Any]) -> None:
    """Print the device, its measured peaks, the rows, and the notes on what was skipped."""
    print_unwrapped(f"device: {report['device']}")
    for precision, peak in report["peaks"].items():
        print_unwrapped(f"{precision}: {peaks_text(peak)}")
    head, *lines = table_cells(report["rows"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in head:
        table.add_column(column, justify="left" if column in LEFT_ALIGNED else "right")
    for line in lines:
        table.add_row(*map(escape, line))
    print_unwrapped(table)
    for note in report["notes"]:
        print_unwrapped(note)


def peaks_text(peak: Mapping[str, Any]) -> str:
    """`memory bandwidth 11.2 GB/s, matmul 45.1 GMAC/s`."""
    bandwidth, matmul = peak["bytes_per_s"] / 1e9, peak["macs_per_s"] / 1e9
    return f"memory bandwidth {bandwidth:.1f} GB/s, matmul {matmul:.1f} GMAC/s"


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return the header and the cells of each row, without columns that have no information."""
    columns = {title: text for title, text in COLUMNS.items() if _is_informative(title, rows)}
    return [list(columns), *([text(row) for text in columns.values()] for row in rows)]


def _is_informative(column: str, rows: Sequence[Row]) -> bool:
    if column in VARIANTS:
        return len({row[column] for row in rows} - {None}) > 1
    return column not in RATIOS or any(row[RATIOS[column]] is not None for row in rows)


def _ratio(row: Row, key: str) -> str:
    if row[key] is None:
        return "-"
    return f"{row[key]:.3f} [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]"


def _roofline(row: Row) -> str:
    """`22.4% (compute-bound)`: the fraction of the roofline that is reached."""
    return "-" if row["bound"] is None else f"{row['roofline_fraction']:.1%} ({row['bound']}-bound)"


def _number(value: float | None, format: str) -> str:
    return "-" if value is None else f"{value:{format}}"
