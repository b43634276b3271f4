"""Runtimes are ordered as the work is, and compilation is not among them."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax

from esrjax.contest import clock, turns
from esrjax.network import ops

SHAPE = (1, 48, 48, 3)


def work(times: int):
    def forward(lr: Array) -> Array:
        return lax.fori_loop(0, times, lambda _, x: jnp.tanh(x), lr)

    return forward


def slow_to_trace(lr: Array) -> Array:
    time.sleep(0.3)  # while it is traced, that is while it is compiled
    return lr + 1


def test_more_work_takes_longer():
    timings = clock.interleaved({"much": work(200), "little": work(1)}, SHAPE, repeats=9)
    assert list(timings) == ["much", "little"]
    assert timings["much"].low_ms > timings["little"].high_ms


def test_the_median_lies_in_its_interval():
    timing = clock.clock(work(5), SHAPE, repeats=9)
    assert timing.runs == 9
    assert timing.low_ms <= timing.median_ms <= timing.high_ms


def test_compilation_is_told_apart():
    timing = clock.clock(slow_to_trace, SHAPE, repeats=5)
    assert timing.compile_s > 0.3
    assert max(timing.first_ms, timing.high_ms) < 300


def test_a_budget_decides_how_many_runs():
    def forward(lr: Array) -> Array:
        return jax.pure_callback(wait, jax.ShapeDtypeStruct(lr.shape, lr.dtype), lr)

    def wait(lr: Array) -> np.ndarray:
        time.sleep(0.01)
        return np.asarray(lr)

    assert clock.clock(forward, SHAPE, budget_s=0.0).runs == turns.FEWEST
    timing = clock.clock(forward, SHAPE, budget_s=0.4)
    assert turns.FEWEST < timing.runs <= 40
    assert timing.median_ms >= 10


def test_networks_take_turns():
    order: list[str] = []

    def noting(name: str):
        def forward(lr: Array) -> Array:
            jax.debug.callback(lambda: order.append(name))
            return lr * 2

        return forward

    clock.interleaved({name: noting(name) for name in "ABC"}, SHAPE, repeats=2)
    jax.effects_barrier()
    assert "".join(order) == "ABC" * (1 + turns.WARM_UP + 2)


def test_memory_is_what_the_compiler_plans():
    timing = clock.clock(lambda lr: lr * 2, SHAPE, repeats=5)
    assert timing.program_mib == pytest.approx(2 * 48 * 48 * 3 * 4 / 2**20, rel=0.01)


def test_a_timing_says_under_which_conditions():
    with jax.default_matmul_precision("highest"):
        timing = clock.clock(work(1), SHAPE, dtype=jnp.bfloat16, repeats=5)
    assert timing.conditions == "bfloat16[1, 48, 48, 3], highest precision"
    assert timing.device == clock.machine()["device"] != "cpu"


def test_a_timing_says_which_bodies_and_which_driver(monkeypatch, tmp_path):
    with ops.body("reference"):
        timing = clock.clock(work(1), SHAPE, repeats=5)
    assert (timing.body, timing.driver) == ("reference", None)
    assert clock.machine()["body"] == "auto"


@pytest.mark.parametrize(
    "module",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build",
    ],
)
def test_the_driver_of_a_gpu_is_read_from_its_kernel_module(module, monkeypatch, tmp_path):
    (tmp_path / "version").write_text(f"{module}\nGCC version:  gcc version 12.2.0 (Debian)\n")
    monkeypatch.setattr(clock, "DRIVER", tmp_path / "version")
    assert clock.machine()["driver"] == "none"  # this is no GPU
    monkeypatch.setattr(clock.jax, "default_backend", lambda: "gpu")
    assert clock.machine()["driver"] in module and clock.machine()["driver"].count(".") == 2


def test_the_interval_is_as_wide_as_theory_says_and_repeatable():
    """For n normal samples the median scatters by 1.2533 σ / sqrt(n)."""
    samples = np.random.default_rng(1).normal(10, 1, 900).tolist()
    low, high = turns.interval(samples)
    assert low < np.median(samples) < high
    assert high - low == pytest.approx(2 * 1.96 * 1.2533 / 30, rel=0.25)
    assert (low, high) == turns.interval(samples)
