"""Timing of networks: order of runtimes, budget, memory, conditions, and compilation apart."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from jax.experimental.compilation_cache import compilation_cache

from esrjax.bench import timing
from esrjax.bench.timing import InterleavedTimings, count_compilations, no_persistent_cache
from esrjax.nn import ops
from esrjax.nn.compilation import compiler_options

SHAPE = (1, 48, 48, 3)


@pytest.fixture(autouse=True)
def many_timed_runs(monkeypatch):
    """As many runs as for users, against `few_timed_runs`."""
    monkeypatch.setattr(timing, "MAX_RUNS", 1000)


def tanh_loop(iterations: int):
    def forward(lr: Array) -> Array:
        return lax.fori_loop(0, iterations, lambda _, x: jnp.tanh(x), lr)

    return forward


def time_network(forward, **options):
    return timing.time_networks({"": forward}, SHAPE, **options)[""]


def slow_to_trace(lr: Array) -> Array:
    time.sleep(0.3)  # runs while tracing, which is part of compilation
    return lr + 1


def test_more_work_takes_longer():
    forwards = {"much": tanh_loop(200), "little": tanh_loop(1)}
    timings = timing.time_networks(forwards, SHAPE, num_runs=9)
    assert list(timings) == ["much", "little"]
    assert timings["much"].low_ms > timings["little"].high_ms


def test_median_lies_in_its_interval():
    result = time_network(tanh_loop(5), num_runs=9)
    assert result.num_runs == 9
    assert result.low_ms <= result.median_ms <= result.high_ms


def test_compilation_is_reported_separately():
    result = time_network(slow_to_trace, num_runs=5)
    assert result.compile_s > 0.3
    assert max(result.first_ms, result.high_ms) < 300


def test_budget_determines_the_number_of_runs():
    def forward(lr: Array) -> Array:
        return jax.pure_callback(wait, jax.ShapeDtypeStruct(lr.shape, lr.dtype), lr)

    def wait(lr: Array) -> np.ndarray:
        time.sleep(0.01)
        return np.asarray(lr)

    assert time_network(forward, budget_s=0.0).num_runs == timing.MIN_RUNS
    result = time_network(forward, budget_s=0.4)
    assert timing.MIN_RUNS < result.num_runs <= 40
    assert result.median_ms >= 10


def test_networks_are_interleaved():
    order: list[str] = []

    def recording(name: str):
        def forward(lr: Array) -> Array:
            jax.debug.callback(lambda: order.append(name))
            return lr * 2

        return forward

    timing.time_networks({name: recording(name) for name in "ABC"}, SHAPE, num_runs=2)
    jax.effects_barrier()
    assert "".join(order) == "ABC" * (1 + timing.WARMUP_ROUNDS + 2)


def test_memory_is_the_compilers_plan():
    result = time_network(lambda lr: lr * 2, num_runs=5)
    assert result.executable_mib == pytest.approx(2 * 48 * 48 * 3 * 4 / 2**20, rel=0.01)


def test_timing_records_its_conditions():
    with jax.default_matmul_precision("highest"):
        result = time_network(tanh_loop(1), dtype=jnp.bfloat16, num_runs=5)
    assert result.conditions == "bfloat16[1, 48, 48, 3], highest precision"
    assert result.device == timing.machine_info()["device"] != "cpu"


def test_timing_records_implementation_and_driver(monkeypatch, tmp_path):
    with ops.implementation("reference"):
        result = time_network(tanh_loop(1), num_runs=5)
    assert (result.implementation, result.driver) == ("reference", None)
    assert timing.machine_info()["implementation"] == "auto"


@pytest.mark.parametrize(
    "module",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build",
    ],
)
def test_gpu_driver_is_read_from_its_kernel_module(module, monkeypatch, tmp_path):
    (tmp_path / "version").write_text(f"{module}\nGCC version:  gcc version 12.2.0 (Debian)\n")
    monkeypatch.setattr(timing, "DRIVER_VERSION_FILE", tmp_path / "version")
    assert timing.machine_info()["driver"] == "none"  # this is no GPU
    monkeypatch.setattr(timing.jax, "default_backend", lambda: "gpu")
    driver = timing.machine_info()["driver"]
    assert driver in module and driver.count(".") == 2


def test_interval_has_the_theoretical_width_and_is_repeatable():
    """For n normal samples the median has the standard error 1.2533 σ / sqrt(n)."""
    samples = np.random.default_rng(1).normal(10, 1, 900).tolist()
    low, high = timing.median_interval(samples)
    assert low < np.median(samples) < high
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 30, rel=0.25)
    assert (low, high) == timing.median_interval(samples)


# --- Interleaved timing, with a simulated clock ---


@pytest.fixture
def advance_ms(monkeypatch):
    """`advance_ms(3.0)` advances the simulated clock by three milliseconds."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def advance(ms: float) -> None:
        now[0] += ms / 1e3

    return advance


def test_calls_are_interleaved_and_timed(advance_ms):
    order = []
    make_call = lambda name, ms: lambda: order.append(name) or advance_ms(ms)  # noqa: E731
    calls = {"A": make_call("A", 4.0), "B": make_call("B", 1.0)}
    timings = timing.time_interleaved(calls, num_runs=3)
    assert "".join(order) == "AB" * (1 + timing.WARMUP_ROUNDS + 3)
    assert timings.samples_ms("A") == pytest.approx([4.0] * 3)
    assert timings.first_ms["B"] == pytest.approx(1.0)
    assert timings.ratios("A", "B") == pytest.approx([4.0] * 3)


def test_budget_applies_to_each_call(advance_ms):
    calls = {"A": lambda: advance_ms(30.0), "B": lambda: advance_ms(10.0)}
    timings = timing.time_interleaved(calls, budget_s=1.0)
    assert len(timings.rounds_ms) == 2 * 1000 // 40


def test_primed_call_follows_an_untimed_one_of_its_own(advance_ms):
    """As with engines whose threads are awake: the first call after another's is slow."""
    order = [""]

    def call(name):
        advance_ms(1.0 if order[-1] == name else 5.0)
        order.append(name)

    calls = {name: lambda name=name: call(name) for name in "AB"}
    timings = timing.time_interleaved(calls, num_runs=3)
    assert timings.samples_ms("B") == pytest.approx([5.0] * 3)
    order.clear()
    order.append("")
    timings = timing.time_interleaved(calls, num_runs=3, prime_before_each=True)
    assert timings.samples_ms("B") == pytest.approx([1.0] * 3)
    assert "".join(order) == "AB" * (1 + timing.WARMUP_ROUNDS) + "AABB" * 3


def test_priming_counts_in_the_budget(advance_ms):
    calls = {"A": lambda: advance_ms(30.0), "B": lambda: advance_ms(10.0)}
    timings = timing.time_interleaved(calls, budget_s=1.0, prime_before_each=True)
    assert len(timings.rounds_ms) == 2 * 1000 // 80


def test_ratios_within_rounds_are_free_of_drift():
    """Each third round the machine is ten times slower; the ratio of medians is far off."""
    pace = np.tile([1.0, 3.0, 10.0], 20)
    shifted = np.roll(pace, 1)
    same_rounds = InterleavedTimings(
        first_ms={}, rounds_ms=[{"A": 6 * p, "B": 4 * p} for p in pace]
    )
    assert same_rounds.ratios("A", "B") == pytest.approx([1.5] * 60)
    assert timing.median_interval(same_rounds.ratios("A", "B")) == pytest.approx((1.5, 1.5))
    other_rounds = InterleavedTimings(
        first_ms={}, rounds_ms=[{"A": a, "B": b} for a, b in zip(pace, shifted, strict=True)]
    )
    assert sorted(set(np.round(other_rounds.ratios("A", "B"), 3))) == [0.1, 3.0, 3.333]


# --- Counting of compilations, and compilation without the persistent cache ---


CACHE_EVERYTHING = {
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_dir": "",
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def image(side: int) -> np.ndarray:
    return np.ones((1, side, side, 3), np.float32)


@pytest.mark.parametrize(("sides", "compilations"), [((8,), 1), ((8, 8), 1), ((8, 9), 2)])
def test_each_image_size_is_one_compilation(sides, compilations):
    double = jax.jit(lambda lr: lr * 2)
    with count_compilations() as seconds:
        for side in sides:
            double(image(side))
    assert len(seconds) == compilations and min(seconds) > 0
    double(image(10))
    assert len(seconds) == compilations  # the listener is gone


@pytest.fixture
def cache_dir(tmp_path):
    """Folder of a persistent cache that keeps every executable."""
    previous = {name: getattr(jax.config, name) for name in CACHE_EVERYTHING}
    options = CACHE_EVERYTHING | {"jax_compilation_cache_dir": str(tmp_path)}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in previous.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_timed_networks_bypass_the_persistent_cache(cache_dir):
    compiler_options()
    jax.jit(lambda lr: lr * 3)(image(8))
    num_cached = len(list(cache_dir.iterdir()))
    assert num_cached  # otherwise the test proves nothing
    timing.compile_forward(lambda lr: lr * 4, image(8))
    with no_persistent_cache():
        jax.jit(lambda lr: lr * 5)(image(8))
    assert len(list(cache_dir.iterdir())) == num_cached
    jax.jit(lambda lr: lr * 6)(image(8))
    assert len(list(cache_dir.iterdir())) > num_cached
