"""How long a network takes, with compilation and the first call apart, and the memory it needs."""

import functools
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from esrjax.contest.compilations import uncached
from esrjax.contest.record import Timing
from esrjax.contest.turns import Key, Turns, interval, ms, turns
from esrjax.network import ops
from esrjax.network.compilation import flags

Forward = Callable[[Array], Array]
DRIVER = Path("/proc/driver/nvidia/version")  # of the kernel module, on Linux


@dataclass(frozen=True, kw_only=True)
class Program:
    """A forward pass ready to run, and what compiling it took and told."""

    call: Forward
    compile_s: float
    mib: float | None


def clock(
    forward: Forward,
    shape: tuple[int, ...],
    *,
    dtype: DTypeLike = jnp.float32,
    budget_s: float = 2.0,
    repeats: int | None = None,
) -> Timing:
    """Times one network on a random LR picture of `shape` (1, h, w, 3), as `interleaved` does."""
    timings = interleaved({"": forward}, shape, dtype=dtype, budget_s=budget_s, repeats=repeats)
    return timings[""]


def interleaved(
    forwards: Mapping[Key, Forward],
    shape: tuple[int, ...],
    *,
    dtype: DTypeLike = jnp.float32,
    budget_s: float = 2.0,
    repeats: int | None = None,
) -> dict[Key, Timing]:
    """Times several networks in turn, as `esrjax.contest.turns` does."""
    lr = jax.device_put(np.random.default_rng(0).random(shape).astype(jnp.dtype(dtype)))
    programs = {name: compiled(forward, lr) for name, forward in forwards.items()}
    calls = {name: functools.partial(program.call, lr) for name, program in programs.items()}
    taken = turns(calls, budget_s=budget_s, repeats=repeats)
    return {name: _timing(program, lr, taken, name) for name, program in programs.items()}


def machine() -> dict[str, str]:
    """What a runtime belongs to: device, driver, versions, precision of products, bodies."""
    return {
        "device": device(),
        "driver": _driver() or "none",
        "body": ops.body.value,
        "platform": jax.default_backend(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "precision": _precision(),
    }


def forward(net: nnx.Module) -> Forward:
    """`net` as a function of pictures alone."""
    graph, state = nnx.split(net)
    return lambda lr: nnx.merge(graph, state)(lr)  # pyright: ignore[reportCallIssue] # networks are callable


def compiled(forward: Forward, lr: Array) -> Program:
    """The forward pass for pictures of the size of `lr`, compiled ahead of its first call."""
    options = dict(flags())
    with uncached():
        start = time.perf_counter()
        program = jax.jit(forward, compiler_options=options).lower(lr).compile()
        compile_s = time.perf_counter() - start
    return Program(call=program, compile_s=compile_s, mib=_planned_mib(program))


def _planned_mib(program: jax.stages.Compiled) -> float | None:
    """Arguments, outputs and temporaries in MiB, memory that two of them share counted once."""
    plan = program.memory_analysis()
    if plan is None:
        return None
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return (held - plan.alias_size_in_bytes) / 2**20


def peak_mib() -> float | None:
    """The most that the device's allocator has held since the process began, where it tells."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 2**20


def run_ms(program: Program, lr: Array) -> float:
    """One call, until its result is there."""
    return ms(functools.partial(program.call, lr))


def _timing(program: Program, lr: Array, taken: Turns[Key], name: Key) -> Timing:
    samples = taken.samples(name)
    low, high = interval(samples)
    return Timing(
        median_ms=float(np.median(samples)),
        low_ms=low,
        high_ms=high,
        runs=len(samples),
        compile_s=program.compile_s,
        first_ms=taken.first[name],
        program_mib=program.mib,
        peak_mib=peak_mib(),
        shape=lr.shape,
        dtype=str(lr.dtype),
        precision=_precision(),
        device=device(),
        driver=_driver(),
        body=ops.body.value,
    )


def device() -> str:
    """The accelerator by name; of a CPU, which JAX calls `cpu`, the model and the cores it has."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    return f"{_cpu()}, {os.cpu_count()} cores"


def _driver() -> str | None:
    """The version of the NVIDIA driver that a GPU runs under."""
    if jax.default_backend() != "gpu" or not DRIVER.is_file():
        return None
    version = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", DRIVER.read_text())
    return version and version[1]


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _precision() -> str:
    return str(jax.default_matmul_precision.value or "default")
