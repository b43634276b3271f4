"""Intervals are as wide as theory says, and what all methods share moves no rank."""

import numpy as np
import pytest
from fields import RULES, SPAN, other, timed

from esrjax.contest.bootstrap import spreads
from esrjax.contest.rank import rank

NOISE = np.random.default_rng(0)


def normal(mean: float, deviation: float, pictures: int = 200) -> list[float]:
    return (mean + deviation * NOISE.standard_normal(pictures)).tolist()


def test_an_interval_is_that_of_the_mean_of_two_means():
    row = timed(other("A"), normal(10, 1), normal(6, 1))
    (found,) = spreads(rank([timed(SPAN, normal(8, 0), normal(8, 0)), row], RULES))
    width = 2 * 1.96 * (1 / 200 + 1 / 200) ** 0.5 / 2
    assert found.low_ms < found.runtime_ms < found.high_ms
    assert found.high_ms - found.low_ms == pytest.approx(width, rel=0.15)
    assert (found.rank, found.best, found.worst, found.held) == (1, 1, 1, 1.0)


def test_large_pictures_that_cost_everyone_change_no_rank():
    """B is always 1 % slower than A, while pictures differ by a factor of ten."""
    sizes = np.linspace(1, 10, 200)
    a, b = (
        timed(other(n), (sizes * k).tolist(), (sizes * k).tolist())
        for n, k in [("A", 1), ("B", 1.01)]
    )
    first, second = spreads(rank([SPAN, a, b], RULES))
    assert first.high_ms > second.low_ms
    assert (first.held, second.held) == (1.0, 1.0)


def test_methods_within_the_noise_of_each_other_change_places():
    rows = [timed(other(name), normal(8, 2), normal(8, 2)) for name in "AB"]
    first, second = spreads(rank([SPAN, *rows], RULES))
    assert (first.best, first.worst, second.best, second.worst) == (1, 2, 1, 2)
    assert 0.4 < first.held < 1 and first.held == pytest.approx(second.held)


def test_the_scores_are_those_of_the_ranking():
    """Where nothing scatters, every resample is the ranking itself."""
    rows = [timed(other(n), [t] * 9, [t] * 9) for n, t in [("A", 9.0), ("B", 5.0), ("C", 7.0)]]
    found = spreads(rank([SPAN, *rows], RULES))
    assert [(each.team, each.rank, each.held) for each in found] == [
        ("B", 1, 1.0),
        ("C", 2, 1.0),
        ("A", 3, 1.0),
    ]
    for each in found:
        assert (each.low_ms, each.high_ms) == pytest.approx((each.runtime_ms, each.runtime_ms))


def test_it_is_repeatable_and_says_nothing_of_medians():
    ranking = rank([SPAN, timed(other("A"), normal(8, 1), normal(8, 1))], RULES)
    assert spreads(ranking) == spreads(ranking)
    assert spreads(rank([SPAN, other("A")], RULES)) == ()
