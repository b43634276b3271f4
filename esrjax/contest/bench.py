"""How long methods take side by side, at several sizes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from esrjax.contest import clock
from esrjax.method import Method
from esrjax.model import require_side
from esrjax.network.reparam import deploy

Rows = list[dict[str, Any]]
Runnable = clock.Forward | clock.Program
Engine = Callable[[str, Method, nnx.Module], Runnable]  # name, method, deployed network


def bench(
    methods: Mapping[str, Method],
    shapes: Sequence[tuple[int, int]],
    sizes: Mapping[str, Any],
    seconds: float,
    engines: Mapping[str, Engine] | None = None,
) -> dict[str, Any]:
    """`{"device", "machine", "rows"}`: a row for every size, method and engine, weights untrained.

    engines: by the name that rows give them; by default JAX alone.
    """
    for name, method in methods.items():
        for shape in shapes:
            require_side(name, method.min_side, shape)
    engines = engines or jax_engine()
    nets = {name: deploy(method.build(**sizes)) for name, method in methods.items()}
    forwards = {
        (name, engine): make(name, methods[name], net)
        for name, net in nets.items()
        for engine, make in engines.items()
    }
    rows = [row for shape in shapes for row in _rows(forwards, shape, seconds)]
    machine = clock.machine()
    return {"device": machine["device"], "machine": machine, "rows": rows}


def jax_engine() -> dict[str, Engine]:
    """JAX on its default backend."""
    return {f"jax-{jax.default_backend()}": lambda name, method, net: forward(net)}


def forward(net: nnx.Module) -> clock.Forward:
    """`net` as a function of pictures alone."""
    graph, state = nnx.split(net)
    return lambda lr: nnx.merge(graph, state)(lr)  # pyright: ignore[reportCallIssue] # networks are callable


def _rows(
    forwards: Mapping[tuple[str, str], Runnable], shape: tuple[int, int], seconds: float
) -> Rows:
    timings = clock.interleaved(forwards, (1, *shape, 3), budget_s=seconds)
    return [
        {
            "method": name,
            "size": f"{shape[0]}x{shape[1]}",
            "engine": engine,
            "median_ms": timing.median_ms,
            "low_ms": timing.low_ms,
            "high_ms": timing.high_ms,
            "compile_s": timing.compile_s,
            "peak_mib": timing.peak_mib if timing.peak_mib is not None else timing.program_mib,
        }
        for (name, engine), timing in timings.items()
    ]
