"""Bootstrap of ranks: widths of intervals as theory predicts, and shared variation cancels."""

import numpy as np
import pytest
from fields import RULES, SPAN, make_row, with_image_runtimes

from esrjax.contest.bootstrap import rank_stability
from esrjax.contest.rank import rank

RNG = np.random.default_rng(0)


def normal(mean: float, stddev: float, num_images: int = 200) -> list[float]:
    return (mean + stddev * RNG.standard_normal(num_images)).tolist()


def test_interval_is_that_of_the_mean_of_two_means():
    row = with_image_runtimes(make_row("A"), normal(10, 1), normal(6, 1))
    baseline = with_image_runtimes(SPAN, normal(8, 0), normal(8, 0))
    (stability,) = rank_stability(rank([baseline, row], RULES))
    width = 2 * 1.96 * (1 / 200 + 1 / 200) ** 0.5 / 2
    assert stability.low_ms < stability.runtime_ms < stability.high_ms
    assert stability.high_ms - stability.low_ms == pytest.approx(width, rel=0.15)
    assert (stability.rank, stability.best_rank, stability.worst_rank) == (1, 1, 1)
    assert stability.same_rank_fraction == 1.0


def test_variation_that_all_methods_share_changes_no_rank():
    """B is always 1 % slower than A, while the images differ by a factor of ten."""
    sizes = np.linspace(1, 10, 200)
    a, b = (
        with_image_runtimes(make_row(name), (sizes * k).tolist(), (sizes * k).tolist())
        for name, k in [("A", 1), ("B", 1.01)]
    )
    first, second = rank_stability(rank([SPAN, a, b], RULES))
    assert first.high_ms > second.low_ms
    assert (first.same_rank_fraction, second.same_rank_fraction) == (1.0, 1.0)


def test_methods_within_the_noise_of_each_other_exchange_ranks():
    rows = [with_image_runtimes(make_row(name), normal(8, 2), normal(8, 2)) for name in "AB"]
    first, second = rank_stability(rank([SPAN, *rows], RULES))
    assert (first.best_rank, first.worst_rank, second.best_rank, second.worst_rank) == (1, 2, 1, 2)
    assert 0.4 < first.same_rank_fraction < 1
    assert first.same_rank_fraction == pytest.approx(second.same_rank_fraction)


def test_without_noise_every_resample_is_the_ranking_itself():
    rows = [
        with_image_runtimes(make_row(name), [ms] * 9, [ms] * 9)
        for name, ms in [("A", 9.0), ("B", 5.0), ("C", 7.0)]
    ]
    stabilities = rank_stability(rank([SPAN, *rows], RULES))
    assert [(s.team, s.rank, s.same_rank_fraction) for s in stabilities] == [
        ("B", 1, 1.0),
        ("C", 2, 1.0),
        ("A", 3, 1.0),
    ]
    for s in stabilities:
        assert (s.low_ms, s.high_ms) == pytest.approx((s.runtime_ms, s.runtime_ms))


def test_bootstrap_is_repeatable_and_empty_for_medians():
    row = with_image_runtimes(make_row("A"), normal(8, 1), normal(8, 1))
    ranking = rank([SPAN, row], RULES)
    assert rank_stability(ranking) == rank_stability(ranking)
    assert rank_stability(rank([SPAN, make_row("A")], RULES)) == ()
