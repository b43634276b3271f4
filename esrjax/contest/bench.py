"""How long methods take side by side, at several sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from esrjax.contest import clock
from esrjax.method import Method
from esrjax.model import require_side
from esrjax.network.reparam import deploy

Rows = list[dict[str, Any]]


def bench(
    methods: Mapping[str, Method],
    shapes: Sequence[tuple[int, int]],
    sizes: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """`{"device", "machine", "rows"}`: a row for every method and LR size, weights untrained."""
    for name, method in methods.items():
        for shape in shapes:
            require_side(name, method, shape)
    forwards = {name: forward(deploy(m.build(**sizes))) for name, m in methods.items()}
    rows = [row for shape in shapes for row in _rows(forwards, shape, seconds)]
    return {"device": clock.machine()["device"], "machine": clock.machine(), "rows": rows}


def forward(net: nnx.Module) -> clock.Forward:
    """`net` as a function of pictures alone."""
    graph, state = nnx.split(net)
    return lambda lr: nnx.merge(graph, state)(lr)  # pyright: ignore[reportCallIssue] # networks are callable


def _rows(forwards: Mapping[str, clock.Forward], shape: tuple[int, int], seconds: float) -> Rows:
    timings = clock.interleaved(forwards, (1, *shape, 3), budget_s=seconds)
    return [
        {
            "method": name,
            "size": f"{shape[0]}x{shape[1]}",
            "engine": f"jax-{jax.default_backend()}",
            "median_ms": timing.median_ms,
            "low_ms": timing.low_ms,
            "high_ms": timing.high_ms,
            "compile_s": timing.compile_s,
            "peak_mib": timing.peak_mib if timing.peak_mib is not None else timing.program_mib,
        }
        for name, timing in timings.items()
    ]
