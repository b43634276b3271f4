"""Timing of networks: order of runtimes, budget, memory, conditions, and compilation apart."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax

from esrjax.contest import clock, turns
from esrjax.network import ops

SHAPE = (1, 48, 48, 3)


def tanh_loop(iterations: int):
    def forward(lr: Array) -> Array:
        return lax.fori_loop(0, iterations, lambda _, x: jnp.tanh(x), lr)

    return forward


def slow_to_trace(lr: Array) -> Array:
    time.sleep(0.3)  # runs while tracing, which is part of compilation
    return lr + 1


def test_more_work_takes_longer():
    forwards = {"much": tanh_loop(200), "little": tanh_loop(1)}
    timings = clock.time_networks(forwards, SHAPE, num_runs=9)
    assert list(timings) == ["much", "little"]
    assert timings["much"].low_ms > timings["little"].high_ms


def test_median_lies_in_its_interval():
    timing = clock.time_network(tanh_loop(5), SHAPE, num_runs=9)
    assert timing.num_runs == 9
    assert timing.low_ms <= timing.median_ms <= timing.high_ms


def test_compilation_is_reported_separately():
    timing = clock.time_network(slow_to_trace, SHAPE, num_runs=5)
    assert timing.compile_s > 0.3
    assert max(timing.first_ms, timing.high_ms) < 300


def test_budget_determines_the_number_of_runs():
    def forward(lr: Array) -> Array:
        return jax.pure_callback(wait, jax.ShapeDtypeStruct(lr.shape, lr.dtype), lr)

    def wait(lr: Array) -> np.ndarray:
        time.sleep(0.01)
        return np.asarray(lr)

    assert clock.time_network(forward, SHAPE, budget_s=0.0).num_runs == turns.MIN_RUNS
    timing = clock.time_network(forward, SHAPE, budget_s=0.4)
    assert turns.MIN_RUNS < timing.num_runs <= 40
    assert timing.median_ms >= 10


def test_networks_are_interleaved():
    order: list[str] = []

    def recording(name: str):
        def forward(lr: Array) -> Array:
            jax.debug.callback(lambda: order.append(name))
            return lr * 2

        return forward

    clock.time_networks({name: recording(name) for name in "ABC"}, SHAPE, num_runs=2)
    jax.effects_barrier()
    assert "".join(order) == "ABC" * (1 + turns.WARMUP_ROUNDS + 2)


def test_memory_is_the_compilers_plan():
    timing = clock.time_network(lambda lr: lr * 2, SHAPE, num_runs=5)
    assert timing.executable_mib == pytest.approx(2 * 48 * 48 * 3 * 4 / 2**20, rel=0.01)


def test_timing_records_its_conditions():
    with jax.default_matmul_precision("highest"):
        timing = clock.time_network(tanh_loop(1), SHAPE, dtype=jnp.bfloat16, num_runs=5)
    assert timing.conditions == "bfloat16[1, 48, 48, 3], highest precision"
    assert timing.device == clock.machine_info()["device"] != "cpu"


def test_timing_records_implementation_and_driver(monkeypatch, tmp_path):
    with ops.implementation("reference"):
        timing = clock.time_network(tanh_loop(1), SHAPE, num_runs=5)
    assert (timing.implementation, timing.driver) == ("reference", None)
    assert clock.machine_info()["implementation"] == "auto"


@pytest.mark.parametrize(
    "module",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build",
    ],
)
def test_gpu_driver_is_read_from_its_kernel_module(module, monkeypatch, tmp_path):
    (tmp_path / "version").write_text(f"{module}\nGCC version:  gcc version 12.2.0 (Debian)\n")
    monkeypatch.setattr(clock, "DRIVER_VERSION_FILE", tmp_path / "version")
    assert clock.machine_info()["driver"] == "none"  # this is no GPU
    monkeypatch.setattr(clock.jax, "default_backend", lambda: "gpu")
    driver = clock.machine_info()["driver"]
    assert driver in module and driver.count(".") == 2


def test_interval_has_the_theoretical_width_and_is_repeatable():
    """For n normal samples the median has the standard error 1.2533 σ / sqrt(n)."""
    samples = np.random.default_rng(1).normal(10, 1, 900).tolist()
    low, high = turns.median_interval(samples)
    assert low < np.median(samples) < high
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 30, rel=0.25)
    assert (low, high) == turns.median_interval(samples)
