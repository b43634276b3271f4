"""The command `bench`: interleaved timing of methods, in JAX and in other engines."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from esrjax.cli.options import (
    BadOption,
    HparamsOption,
    JsonOption,
    MethodsArgument,
    parse_hparams,
    parse_image_size,
    print_json,
)

if TYPE_CHECKING:
    from esrjax.bridge.modes import TorchMode
    from esrjax.bridge.peer import TorchModel
    from esrjax.contest.cases import Backend, CompiledCase
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
    from esrjax.cli.timings import show_bench
    from esrjax.contest import bench as challenge
    from esrjax.contest.cases import Variants

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
    from esrjax.contest import cases

    backends = {} if engine == "onnxruntime" else cases.jax_backend()
    if engine != "jax":
        from esrjax.bridge.onnx import runtime

        backends[f"onnxruntime-{runtime.device()}"] = cases.Backend(factory=_onnx_factory)
    return backends


def _onnx_factory(name: str, method: Method, net: Any) -> Callable[[Any], CompiledCase]:
    """A network in ONNX Runtime, exported once for all image sizes."""
    from esrjax.bridge import engine
    from esrjax.contest.cases import CompiledCase

    forward = functools.cache(lambda: engine.onnx_forward(name, method, net))

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
    from esrjax.bridge.onnx.runtime import import_library

    import_library("torch", "torch")
    from esrjax.bridge import peer

    models = {name: peer.build(peer.parse_source(s, kwargs)) for name, s in sources.items()}
    return {
        name: {label: _torch_factory(model, methods[name].scale, m) for label, m in modes.items()}
        for name, model in models.items()
    }


def _torch_factory(model: TorchModel, scale: int, mode: TorchMode) -> Callable[[Any], CompiledCase]:
    from esrjax.bridge import modes
    from esrjax.contest.cases import CompiledCase, SkipBackend

    def compile_case(lr: Any) -> CompiledCase:
        start = time.perf_counter()
        try:
            call = modes.prepare(model, lr, scale, mode)
        except modes.TorchCompileError as error:
            raise SkipBackend(error.problem) from error
        duration = time.perf_counter() - start
        return CompiledCase(call=call, compile_s=duration if mode == "compiled" else None)

    return compile_case


# --- options -----------------------------------------------------------------------------------


def _choices(option: str, text: str, allowed: Iterable[str]) -> list[Any]:
    """`"a,b" -> ["a", "b"]`: different values, all of them allowed."""
    values = [value.strip() for value in text.split(",")]
    if len(set(values)) < len(values) or not set(values) <= set(allowed):
        raise BadOption(
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
    raise BadOption(
        f"--torch {text!r} does not name its method",
        rule=f"with several methods it is METHOD=FILE.py:CLASS, METHOD being one of "
        f"{', '.join(names)}",
        remedy=f"for example --torch {names[0]}={source or text}",
    )


def _only_float32(engine: str) -> BadOption:
    return BadOption(
        f"--precision cannot be combined with --engine {engine}",
        rule="ONNX Runtime runs the exported network in float32 only",
        remedy="leave --precision out, or use --engine jax",
    )


def _needs_torch() -> BadOption:
    return BadOption(
        "--torch-compile needs --torch",
        rule="--torch-compile applies to the PyTorch networks of --torch",
        remedy="name a PyTorch network with --torch, or leave --torch-compile out",
    )


def _needs_cpu(backend: str) -> BadOption:
    return BadOption(
        f"--torch needs JAX on the CPU, not on {backend!r}",
        rule="PyTorch networks run on the CPU, and both sides are timed on the same device",
        remedy="set JAX_PLATFORMS=cpu",
    )
