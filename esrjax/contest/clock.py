"""Timing of networks: compilation, first call, median runtime and memory, and the machine."""

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

from esrjax.contest.compilations import no_persistent_cache
from esrjax.contest.record import Timing
from esrjax.contest.turns import InterleavedTimings, Key, median_interval, time_interleaved, time_ms
from esrjax.network import ops
from esrjax.network.compilation import compiler_options

ForwardFn = Callable[[Array], Array]
DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")  # of the NVIDIA kernel module, on Linux


@dataclass(frozen=True, kw_only=True)
class CompiledForward:
    """A forward pass compiled for one image size.

    Attributes:
        call: The compiled executable; takes LR images of that size.
        compile_s: Seconds for tracing, lowering and compiling.
        executable_mib: Memory of arguments, outputs and temporaries as the compiler plans it, MiB;
            None where the backend does not report it.
    """

    call: ForwardFn
    compile_s: float
    executable_mib: float | None


def time_network(
    forward: ForwardFn,
    shape: tuple[int, ...],
    *,
    dtype: DTypeLike = jnp.float32,
    budget_s: float = 2.0,
    num_runs: int | None = None,
) -> Timing:
    """Time one network; see `time_networks`."""
    timings = time_networks({"": forward}, shape, dtype=dtype, budget_s=budget_s, num_runs=num_runs)
    return timings[""]


def time_networks(
    forwards: Mapping[Key, ForwardFn],
    shape: tuple[int, ...],
    *,
    dtype: DTypeLike = jnp.float32,
    budget_s: float = 2.0,
    num_runs: int | None = None,
) -> dict[Key, Timing]:
    """Time several networks, interleaved, on one random LR image.

    Args:
        forwards: Forward passes by name.
        shape: Shape of the LR image, (1, h, w, 3); its values lie in [0, 1).
        dtype: Dtype of the LR image.
        budget_s: Seconds to spend on each network.
        num_runs: Number of timed runs of each network; None derives it from the budget.

    Returns:
        Median, interval, compile time and memory of each network, by name.
    """
    lr = jax.device_put(np.random.default_rng(0).random(shape).astype(jnp.dtype(dtype)))
    compiled = {name: compile_forward(forward, lr) for name, forward in forwards.items()}
    calls = {name: functools.partial(program.call, lr) for name, program in compiled.items()}
    timings = time_interleaved(calls, budget_s=budget_s, num_runs=num_runs)
    return {name: _timing(program, lr, timings, name) for name, program in compiled.items()}


def machine_info() -> dict[str, str]:
    """Return what a runtime depends on: device, driver, versions, matmul precision, op choice."""
    return {
        "device": device_name(),
        "driver": _driver() or "none",
        "implementation": ops.implementation.value,
        "platform": jax.default_backend(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "precision": _precision(),
    }


def forward_fn(net: nnx.Module) -> ForwardFn:
    """Return `net` as a pure function of LR images; its weights are constants of the executable."""
    graph, state = nnx.split(net)
    return lambda lr: nnx.merge(graph, state)(lr)  # pyright: ignore[reportCallIssue] # networks are callable


def compile_forward(forward: ForwardFn, lr: Array) -> CompiledForward:
    """Compile a forward pass ahead of time, for images of the shape and dtype of `lr`.

    The persistent compilation cache is off meanwhile: an executable read from it would make
    `compile_s` the time of reading a file.
    """
    options = dict(compiler_options())
    with no_persistent_cache():
        start = time.perf_counter()
        compiled = jax.jit(forward, compiler_options=options).lower(lr).compile()
        compile_s = time.perf_counter() - start
    return CompiledForward(
        call=compiled, compile_s=compile_s, executable_mib=_planned_mib(compiled)
    )


def _planned_mib(compiled: jax.stages.Compiled) -> float | None:
    """Return the planned memory of arguments, outputs and temporaries, MiB.

    Output buffers that alias arguments are in both sizes, and are counted once.
    """
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    num_bytes = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
    return (num_bytes - plan.alias_size_in_bytes) / 2**20


def peak_memory_mib() -> float | None:
    """Return the allocator's peak since the process began, MiB; None if it is not reported."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 2**20


def time_forward_ms(compiled: CompiledForward, lr: Array) -> float:
    """Return the milliseconds of one forward pass, until its result is ready."""
    return time_ms(functools.partial(compiled.call, lr))


def _timing(
    compiled: CompiledForward, lr: Array, timings: InterleavedTimings[Key], name: Key
) -> Timing:
    samples = timings.samples_ms(name)
    low, high = median_interval(samples)
    return Timing(
        median_ms=float(np.median(samples)),
        low_ms=low,
        high_ms=high,
        num_runs=len(samples),
        compile_s=compiled.compile_s,
        first_ms=timings.first_ms[name],
        executable_mib=compiled.executable_mib,
        peak_mib=peak_memory_mib(),
        shape=lr.shape,
        dtype=str(lr.dtype),
        precision=_precision(),
        device=device_name(),
        driver=_driver(),
        implementation=ops.implementation.value,
    )


def device_name() -> str:
    """Return the name of the device: the GPU's, or model and cores of a CPU (JAX says `cpu`)."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    return f"{_cpu()}, {os.cpu_count()} cores"


def _driver() -> str | None:
    """Return the version of the NVIDIA driver, None where JAX does not run on a GPU."""
    if jax.default_backend() != "gpu" or not DRIVER_VERSION_FILE.is_file():
        return None
    version = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", DRIVER_VERSION_FILE.read_text())
    return version and version[1]


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _precision() -> str:
    """Return JAX's matmul precision; "default" may be TF32 for float32 on a GPU."""
    return str(jax.default_matmul_precision.value or "default")
