"""Calls take turns, and their ratios are those of single rounds: by a clock that we turn."""

import numpy as np
import pytest

from esrjax.contest import turns
from esrjax.contest.turns import Turns


@pytest.fixture
def clock(monkeypatch):
    """`clock(3.0)` lets three milliseconds go by."""
    now = [0.0]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: now[0])

    def wait(ms: float) -> None:
        now[0] += ms / 1e3

    return wait


def test_calls_take_turns_and_take_their_time(clock):
    order = []
    spend = lambda name, ms: lambda: order.append(name) or clock(ms)  # noqa: E731
    taken = turns.turns({"A": spend("A", 4.0), "B": spend("B", 1.0)}, repeats=3)
    assert "".join(order) == "AB" * (1 + turns.WARM_UP + 3)
    assert taken.samples("A") == pytest.approx([4.0] * 3)
    assert taken.first["B"] == pytest.approx(1.0)
    assert taken.ratios("A", "B") == pytest.approx([4.0] * 3)


def test_the_budget_is_of_every_call(clock):
    taken = turns.turns({"A": lambda: clock(30.0), "B": lambda: clock(10.0)}, budget_s=1.0)
    assert len(taken.rounds) == 2 * 1000 // 40


def test_a_settled_call_follows_one_of_its_own_that_does_not_count(clock):
    """As where threads of another engine are still awake: the first call after it takes longer."""
    ran = [""]

    def spend(name):
        clock(1.0 if ran[-1] == name else 5.0)
        ran.append(name)

    calls = {name: lambda name=name: spend(name) for name in "AB"}
    assert turns.turns(calls, repeats=3).samples("B") == pytest.approx([5.0] * 3)
    ran.clear()
    ran.append("")
    assert turns.turns(calls, repeats=3, settled=True).samples("B") == pytest.approx([1.0] * 3)
    assert "".join(ran) == "AB" * (1 + turns.WARM_UP) + "AABB" * 3


def test_what_settles_is_paid_for_out_of_the_budget(clock):
    calls = {"A": lambda: clock(30.0), "B": lambda: clock(10.0)}
    taken = turns.turns(calls, budget_s=1.0, settled=True)
    assert len(taken.rounds) == 2 * 1000 // 80


def test_a_ratio_is_of_one_round_and_so_free_of_drift():
    """Each third round the machine is ten times slower; the medians' own ratio is far off."""
    pace = np.tile([1.0, 3.0, 10.0], 20)
    late = np.roll(pace, 1)
    steady = Turns(first={}, rounds=[{"A": 6 * p, "B": 4 * p} for p in pace])
    assert steady.ratios("A", "B") == pytest.approx([1.5] * 60)
    assert turns.interval(steady.ratios("A", "B")) == pytest.approx((1.5, 1.5))
    apart = Turns(first={}, rounds=[{"A": a, "B": b} for a, b in zip(pace, late, strict=True)])
    assert sorted(set(np.round(apart.ratios("A", "B"), 3))) == [0.1, 3.0, 3.333]
