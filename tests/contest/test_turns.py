"""Interleaved timing, with a simulated clock."""

import numpy as np
import pytest

from esrjax.contest import turns
from esrjax.contest.turns import InterleavedTimings


@pytest.fixture
def advance_ms(monkeypatch):
    """`advance_ms(3.0)` advances the simulated clock by three milliseconds."""
    now = [0.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])

    def advance(ms: float) -> None:
        now[0] += ms / 1e3

    return advance


def test_calls_are_interleaved_and_timed(advance_ms):
    order = []
    make_call = lambda name, ms: lambda: order.append(name) or advance_ms(ms)  # noqa: E731
    calls = {"A": make_call("A", 4.0), "B": make_call("B", 1.0)}
    timings = turns.time_interleaved(calls, num_runs=3)
    assert "".join(order) == "AB" * (1 + turns.WARMUP_ROUNDS + 3)
    assert timings.samples_ms("A") == pytest.approx([4.0] * 3)
    assert timings.first_ms["B"] == pytest.approx(1.0)
    assert timings.ratios("A", "B") == pytest.approx([4.0] * 3)


def test_budget_applies_to_each_call(advance_ms):
    calls = {"A": lambda: advance_ms(30.0), "B": lambda: advance_ms(10.0)}
    timings = turns.time_interleaved(calls, budget_s=1.0)
    assert len(timings.rounds_ms) == 2 * 1000 // 40


def test_primed_call_follows_an_untimed_one_of_its_own(advance_ms):
    """As with engines whose threads are awake: the first call after another's is slow."""
    order = [""]

    def call(name):
        advance_ms(1.0 if order[-1] == name else 5.0)
        order.append(name)

    calls = {name: lambda name=name: call(name) for name in "AB"}
    timings = turns.time_interleaved(calls, num_runs=3)
    assert timings.samples_ms("B") == pytest.approx([5.0] * 3)
    order.clear()
    order.append("")
    timings = turns.time_interleaved(calls, num_runs=3, prime_before_each=True)
    assert timings.samples_ms("B") == pytest.approx([1.0] * 3)
    assert "".join(order) == "AB" * (1 + turns.WARMUP_ROUNDS) + "AABB" * 3


def test_priming_counts_in_the_budget(advance_ms):
    calls = {"A": lambda: advance_ms(30.0), "B": lambda: advance_ms(10.0)}
    timings = turns.time_interleaved(calls, budget_s=1.0, prime_before_each=True)
    assert len(timings.rounds_ms) == 2 * 1000 // 80


def test_ratios_within_rounds_are_free_of_drift():
    """Each third round the machine is ten times slower; the ratio of medians is far off."""
    pace = np.tile([1.0, 3.0, 10.0], 20)
    shifted = np.roll(pace, 1)
    same_rounds = InterleavedTimings(
        first_ms={}, rounds_ms=[{"A": 6 * p, "B": 4 * p} for p in pace]
    )
    assert same_rounds.ratios("A", "B") == pytest.approx([1.5] * 60)
    assert turns.median_interval(same_rounds.ratios("A", "B")) == pytest.approx((1.5, 1.5))
    other_rounds = InterleavedTimings(
        first_ms={}, rounds_ms=[{"A": a, "B": b} for a, b in zip(pace, shifted, strict=True)]
    )
    assert sorted(set(np.round(other_rounds.ratios("A", "B"), 3))) == [0.1, 3.0, 3.333]
