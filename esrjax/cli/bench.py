"""The command `bench`: interleaved timing of methods in JAX and other engines, and its table."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from esrjax import registry
from esrjax.cli import options
from esrjax.cli.output import number_text, print_json, print_unwrapped, show_table
from esrjax.errors import ExportError, InvalidArgument, TorchCompileError
from esrjax.method import Method

if TYPE_CHECKING:
    from esrjax.bench.bench import Backend, CompiledCase, Factory
    from esrjax.interop.onnx.sessions import OnnxEngine
    from esrjax.interop.torch_optim import TorchMode

# Name of the engine in the rows -> execution mode of PyTorch.
TORCH_MODES: Mapping[str, TorchMode] = {
    "pytorch": "eager",
    "pytorch-channels-last": "channels-last",
    "pytorch-compiled": "compiled",
}


def bench(
    names: options.MethodsArgument,
    image_size: str = "256x256",
    hparams: options.HparamsOption = None,
    implementation: str = "auto",
    precision: str = "float32",
    seconds: float = 2.0,
    engine: Literal["jax", "openvino", "onnxruntime", "all"] = "jax",
    torch: list[str] | None = None,
    torch_compile: bool = False,
    as_json: options.JsonOption = False,
) -> None:
    """Time methods interleaved in one process: latency, roofline, compilation, memory.

    Args:
        image_size (HxW,...): LR image sizes, comma-separated, pixels.
        implementation: Implementations of the operations, comma-separated: auto, reference, kernel.
        precision: Precisions of weights and images, comma-separated: float32, bfloat16.
        seconds: Timing budget for each row of the table, seconds.
        engine: Inference engine; all: those that are installed, interleaved.
        torch ([METHOD=]FILE.py:CLASS): Also time a PyTorch implementation of a method, interleaved.
            Runs the code in FILE.py. Repeatable.
        torch_compile: With --torch: also time it under torch.compile.
    """
    sizes = [options.parse_image_size(text) for text in image_size.split(",")]
    if len(set(sizes)) < len(sizes):
        rule = "image sizes are different ones, comma-separated"
        raise options.invalid("--image-size", image_size, rule, "128x128,256x256")
    if not 0 < seconds < math.inf:  # no range of click refuses nan
        rule = "the timing budget is a positive number of seconds"
        raise options.invalid("--seconds", f"{seconds:g}", rule, "2")
    implementations = _choices("--implementation", implementation, "auto,reference,kernel")
    precisions = _choices("--precision", precision, "float32,bfloat16")
    if engine != "jax" and precisions != ["float32"]:
        rule = "OpenVINO and ONNX Runtime are timed in float32"
        raise options.excludes("--precision", f"--engine {engine}", rule)
    if torch_compile and not torch:
        rule = "--torch-compile applies to the PyTorch networks of --torch"
        raise options.needs("--torch-compile", "--torch", rule)
    from esrjax.bench import bench as cases

    methods = {name: registry.get_method(name) for name in names}
    sources = dict(options.split_method("--torch", text, names) for text in torch or [])
    kwargs = options.parse_hparams(hparams)
    report = cases.bench(
        methods,
        sizes,
        kwargs,
        seconds,
        _backends(engine),
        variants=cases.Variants(implementations=implementations, precisions=precisions),
        torch_factories=_torch_factories(sources, methods, kwargs, torch_compile),
    )
    show = print_json if as_json else _show
    show(report)


def _choices(option: str, text: str, choices: str) -> list[Any]:
    """`"a,b" -> ["a", "b"]`: different values, all of them in the list `choices`."""
    values, allowed = [value.strip() for value in text.split(",")], choices.split(",")
    if len(set(values)) < len(values) or not set(values) <= set(allowed):
        rule = f"one or several of {', '.join(allowed)}, each once, comma-separated"
        raise options.invalid(option, text, rule, choices)
    return values


# --- engines -----------------------------------------------------------------------------------


def _backends(engine: str) -> dict[str, Backend]:
    """The backends to time, by the name of the engine in the rows."""
    from esrjax.bench import bench as cases
    from esrjax.interop.onnx.sessions import device, is_installed

    backends = cases.jax_backend() if engine in ("jax", "all") else {}
    for name in ("openvino", "onnxruntime"):
        if engine == name or (engine == "all" and is_installed(name)):
            place = "cpu" if name == "openvino" else device()
            factory = functools.partial(_onnx_factory, name)
            backends[f"{name}-{place}"] = cases.Backend(factory=factory)
    return backends


def _onnx_factory(engine: OnnxEngine, name: str, method: Method, net: Any) -> Factory:
    """A network that is exported once for all image sizes, in OpenVINO or ONNX Runtime."""
    from esrjax.interop import engines

    forward = functools.cache(lambda: engines.onnx_forward(name, method, net, engine))
    return _factory(lambda lr: functools.partial(forward(), lr))


def _factory(prepare: Callable[[Any], Callable[[], Any]], *, is_compiled: bool = True) -> Factory:
    """A factory of cases from a function of an LR image, which returns its forward pass."""
    from esrjax.bench.bench import CompiledCase, SkipBackend

    def compile_case(lr: Any) -> CompiledCase:
        start = time.perf_counter()
        try:
            call = prepare(lr)
        except (TorchCompileError, ExportError) as error:
            raise SkipBackend(error.problem) from error
        duration = time.perf_counter() - start
        return CompiledCase(call=call, compile_s=duration if is_compiled else None)

    return compile_case


def _torch_factories(
    sources: Mapping[str, str],
    methods: Mapping[str, Method],
    kwargs: dict[str, Any],
    torch_compile: bool,
) -> dict[str, dict[str, Factory]]:
    """The user's PyTorch networks, built with `kwargs`, by method and engine."""
    if not sources:
        return {}
    import jax

    if (backend := jax.default_backend()) != "cpu":
        raise InvalidArgument(
            f"--torch needs JAX on the CPU, not on {backend!r}",
            rule="PyTorch networks run on the CPU, and both sides are timed on the same device",
            remedy="set JAX_PLATFORMS=cpu",
        )
    from esrjax.interop.onnx.sessions import import_library

    import_library("torch", "torch")
    from esrjax.interop import torch_model, torch_optim

    factories: dict[str, dict[str, Factory]] = {}
    for name, source in sources.items():
        model = torch_model.build(torch_model.parse_source(source, kwargs))
        scale = methods[name].scale_of(kwargs)
        prepare = functools.partial(torch_optim.prepare, model, scale=scale)
        factories[name] = {
            engine: _factory(functools.partial(prepare, mode=mode), is_compiled=mode == "compiled")
            for engine, mode in TORCH_MODES.items()
            if torch_compile or mode != "compiled"
        }
    return factories


# --- table: a row for each method, image size, engine, implementation and precision ------------

Row = Mapping[str, Any]  # of `esrjax.bench.bench.bench`


def _ratio(row: Row, key: str) -> str:
    if row[key] is None:
        return "-"
    return f"{row[key]:.3f} [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]"


def _roofline(row: Row) -> str:
    """`22.4% (compute-bound)`: the fraction of the roofline that is reached."""
    return "-" if row["bound"] is None else f"{row['roofline_fraction']:.1%} ({row['bound']}-bound)"


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
    "roofline": _roofline,
    "compile time, s": lambda row: number_text(row["compile_s"], ".2f"),
    "compilations": lambda row: str(row["compilations"]),
    "memory, MiB": lambda row: number_text(row["peak_mib"], ".1f"),
}
LEFT_ALIGNED = ("method", "image size", "engine", "implementation", "precision")
# Columns that are left out where the rows have fewer distinct cells, beside "-".
MIN_DISTINCT = {"implementation": 2, "precision": 2, "vs. eager PyTorch": 1, "vs. torch.compile": 1}


def _show(report: Mapping[str, Any]) -> None:
    """Print the device, its measured peaks, the rows, and the notes on what was skipped."""
    peaks = [f"{precision}: {peaks_text(peak)}" for precision, peak in report["peaks"].items()]
    print_unwrapped(f"device: {report['device']}", *peaks)
    head, *lines = table_cells(report["rows"])
    show_table([dict(zip(head, line, strict=True)) for line in lines], head, LEFT_ALIGNED)
    print_unwrapped(*report["notes"])


def peaks_text(peak: Mapping[str, Any]) -> str:
    """`memory bandwidth 11.2 GB/s, matmul 45.1 GMAC/s`."""
    bandwidth, matmul = peak["bytes_per_s"] / 1e9, peak["macs_per_s"] / 1e9
    return f"memory bandwidth {bandwidth:.1f} GB/s, matmul {matmul:.1f} GMAC/s"


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return the header and the cells of each row, without columns that have no information."""
    columns = {title: [title, *map(text, rows)] for title, text in COLUMNS.items()}
    shown = [
        cells
        for title, cells in columns.items()
        if len({*cells[1:]} - {"-"}) >= MIN_DISTINCT.get(title, 0)
    ]
    return [list(cells) for cells in zip(*shown, strict=True)]
