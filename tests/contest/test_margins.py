"""A margin is exactly as much as it takes."""

from dataclasses import replace

import pytest
from fields import FIELDS, RULES, SPAN, other
from hypothesis import given, settings

from esrjax.contest.margins import STEP_MS, margins
from esrjax.contest.rank import again, rank
from esrjax.contest.rows import Row
from esrjax.contest.scenarios import swapped


def faster(ranking, row: Row, by_ms: float):
    """The row's main rank and score when it takes so much less time."""
    changed = replace(row, runtime_ms=row.runtime_ms - by_ms)
    after = again(ranking, rows=swapped(ranking.rows, changed))
    line = next(line for line in after.lines if line.row == changed)
    return line.place("main"), line.score("main")


@given(FIELDS)
@settings(max_examples=60, deadline=None)
def test_what_it_takes_to_gain_or_lose_a_rank(field: list[Row]):
    ranking = rank(field, RULES)
    for line, margin in zip(ranking.of("ranked"), margins(ranking), strict=False):
        row, place = line.row, line.place("main")
        assert place and margin.team == row.team
        if margin.step is None or margin.step < 1e-8:
            continue  # double precision cannot tell scores apart that 0.0001 ms makes
        if margin.gain_ms is not None and margin.gain_ms > 1e-3:
            assert faster(ranking, row, margin.gain_ms - 1e-4)[0] == place
            if row.runtime_ms > margin.gain_ms + 1e-4:
                assert faster(ranking, row, margin.gain_ms + 1e-4)[0] < place
        if margin.spare_ms is not None and margin.spare_ms > 1e-3:
            assert faster(ranking, row, 1e-4 - margin.spare_ms)[0] == place
            assert faster(ranking, row, -1e-4 - margin.spare_ms)[0] > place


@given(FIELDS)
@settings(max_examples=30, deadline=None)
def test_a_step_shrinks_the_main_score_by_so_much(field: list[Row]):
    ranking = rank(field, RULES)
    for line, margin in zip(ranking.of("ranked"), margins(ranking), strict=False):
        after = faster(ranking, line.row, STEP_MS)[1]
        assert margin.step == pytest.approx(1 - after / line.score("main"))


@given(FIELDS)
@settings(max_examples=60, deadline=None)
def test_a_floor_is_missed_below_no_spare_decibel(field: list[Row]):
    ranking = rank(field, RULES)
    said = {margin.team: margin for margin in margins(ranking)}
    for line in (*ranking.of("ranked"), *ranking.of("missed")):
        spare = said[line.row.team].spare_mdb
        assert all((spare[name] < 0) == (name in line.missed) for name in ("valid", "test"))


def test_runtimes_that_hardly_count_are_still_told_apart():
    """Where parameters decide nearly all of a score, its digits do not hold the runtime's share."""
    slow, fast = other("Slow", runtime_ms=2.0, params_m=2.0), other("Fast", params_m=2.0)
    ranking = rank([SPAN, slow, replace(fast, runtime_ms=1.0)], RULES)
    said = {margin.team: margin for margin in margins(ranking)}
    assert said["Slow"].gain_ms == pytest.approx(1.0)
    assert said["Fast"].spare_ms == pytest.approx(1.0)


def test_runtime_alone_cannot_make_up_for_parameters():
    heavy = other("Heavy", params_m=9.0)
    assert margins(rank([SPAN, other("Light"), heavy], RULES))[1].gain_ms is None


def test_who_passes_by_rounding_alone_is_said():
    ranking = rank([SPAN, other("Close", psnr_valid=26.8951), other("Clear")], RULES)
    rounded = {margin.team: margin.rounded for margin in margins(ranking)}
    assert rounded == {"Close": {"valid"}, "Clear": frozenset()}
    spare = {margin.team: margin.spare_mdb["valid"] for margin in margins(ranking)}
    assert spare == pytest.approx({"Close": 0.1, "Clear": 45.0})
