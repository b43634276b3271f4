"""Timing of calls and of networks: interleaved rounds, compilation, memory, and the machine.

With context managers that count XLA compilations and disable the persistent compilation cache.
"""

import functools
import os
import platform
import re
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.experimental.compilation_cache import compilation_cache
from jax.typing import DTypeLike

from esrjax.bench import Timing
from esrjax.nn import ops
from esrjax.nn.compilation import call_network, compiler_options

Key = TypeVar("Key", bound=Hashable)
Call = Callable[[], Any]
ForwardFn = Callable[[Array], Array]

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
CACHE_OPTION = "jax_enable_compilation_cache"
DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")  # of the NVIDIA kernel module, on Linux
WARMUP_ROUNDS = 2  # untimed rounds after the first call
MIN_RUNS, MAX_RUNS = 5, 1000  # limits on the number of runs that a budget allows


# --- compilations ---


@contextmanager
def count_compilations() -> Generator[list[float]]:
    """Yield a list that receives the seconds of each XLA compilation inside the block."""
    seconds: list[float] = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == COMPILE_EVENT:
            seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@contextmanager
def no_persistent_cache() -> Generator[None]:
    """Neither read nor write JAX's persistent compilation cache inside the block.

    A compilation that is answered from the cache would be reported as almost free.
    """
    previous = getattr(jax.config, CACHE_OPTION)
    jax.config.update(CACHE_OPTION, False)
    compilation_cache.reset_cache()  # JAX reads the option once, until the cache is reset
    try:
        yield
    finally:
        jax.config.update(CACHE_OPTION, previous)
        compilation_cache.reset_cache()


# --- interleaved calls ---


@dataclass(frozen=True, kw_only=True)
class InterleavedTimings(Generic[Key]):
    """Runtimes of several calls in interleaved rounds: A B C A B C, so that drift affects all.

    Attributes:
        first_ms: Runtime of the first run of each call, before the warm-up.
        rounds_ms: Runtimes of each round, in which every call ran once, in order.
    """

    first_ms: Mapping[Key, float]
    rounds_ms: Sequence[Mapping[Key, float]]

    def samples_ms(self, key: Key) -> list[float]:
        """Return the runtimes of one call, round by round."""
        return [round_ms[key] for round_ms in self.rounds_ms]

    def ratios(self, key: Key, base: Key) -> list[float]:
        """Return the runtime of one call divided by that of another, round by round.

        Ratios within a round are less noisy than the ratio of medians: whatever slowed the machine
        down during that round slowed both calls.
        """
        return [round_ms[key] / round_ms[base] for round_ms in self.rounds_ms]


def time_interleaved(
    calls: Mapping[Key, Call],
    *,
    budget_s: float = 2.0,
    num_runs: int | None = None,
    prime_before_each: bool = False,
) -> InterleavedTimings[Key]:
    """Time several calls in interleaved rounds, after a first call and a warm-up of each.

    Args:
        calls: Calls by name; what a call returns is waited for with `jax.block_until_ready`.
        budget_s: Seconds to spend on each call, which gives between 5 and 1000 runs of it.
        num_runs: Number of runs of each call; None derives it from the budget.
        prime_before_each: Run each call once untimed right before its timed run. Needed when the
            calls belong to different runtimes (JAX, ONNX Runtime, PyTorch) with thread pools of
            their own: threads of the previous call still spin on the cores, and those of this call
            are asleep. The untimed run gives the former time to sleep and wakes the latter (SPANV2
            at 128x128 in JAX: 21 ms without it, 14.6 ms with it; docs/benchmarks.md).
    """
    first_ms = _time_round(calls)
    # The last warm-up round also estimates how many rounds fit into the budget.
    warmup_ms = [_time_round(calls) for _ in range(WARMUP_ROUNDS)][-1]
    round_ms = sum(warmup_ms.values()) * (1 + prime_before_each)
    affordable_runs = int(budget_s * len(calls) * 1e3 / round_ms)
    runs = num_runs or min(MAX_RUNS, max(MIN_RUNS, affordable_runs))
    rounds_ms = [_time_round(calls, prime=prime_before_each) for _ in range(runs)]
    return InterleavedTimings(first_ms=first_ms, rounds_ms=rounds_ms)


def time_ms(call: Call) -> float:
    """Return the milliseconds from a call until its result is ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())  # JAX dispatches asynchronously
    return (time.perf_counter() - start) * 1e3


def median_interval(samples: Sequence[float], *, resamples: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median (percentile method, fixed seed)."""
    resampled = np.random.default_rng(0).choice(samples, (resamples, len(samples)))
    low, high = np.quantile(np.median(resampled, axis=1), [0.025, 0.975])
    return float(low), float(high)


def _time_round(calls: Mapping[Key, Call], *, prime: bool = False) -> dict[Key, float]:
    times_ms: dict[Key, float] = {}
    for key, call in calls.items():
        if prime:
            time_ms(call)
        times_ms[key] = time_ms(call)
    return times_ms


# --- networks ---


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
    programs = {name: compile_forward(forward, lr) for name, forward in forwards.items()}
    calls = {name: functools.partial(program.call, lr) for name, program in programs.items()}
    rounds = time_interleaved(calls, budget_s=budget_s, num_runs=num_runs)
    timings: dict[Key, Timing] = {}
    for name, program in programs.items():
        samples = rounds.samples_ms(name)
        low, high = median_interval(samples)
        timings[name] = Timing(
            median_ms=float(np.median(samples)),
            low_ms=low,
            high_ms=high,
            num_runs=len(samples),
            compile_s=program.compile_s,
            first_ms=rounds.first_ms[name],
            executable_mib=program.executable_mib,
            peak_mib=peak_memory_mib(),
            shape=lr.shape,
            dtype=str(lr.dtype),
            precision=_precision(),
            device=device_name(),
            driver=_driver(),
            implementation=ops.implementation.value,
        )
    return timings


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
    return lambda lr: call_network(nnx.merge(graph, state), lr)


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
    plan, executable_mib = compiled.memory_analysis(), None
    if plan is not None:
        # Output buffers that alias arguments are in both sizes, and are counted once.
        size = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
        executable_mib = (size - plan.alias_size_in_bytes) / 2**20
    return CompiledForward(call=compiled, compile_s=compile_s, executable_mib=executable_mib)


def peak_memory_mib() -> float | None:
    """Return the allocator's peak since the process began, MiB; None if it is not reported."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else peak / 2**20


def time_forward_ms(compiled: CompiledForward, lr: Array) -> float:
    """Return the milliseconds of one forward pass, until its result is ready."""
    return time_ms(functools.partial(compiled.call, lr))


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
