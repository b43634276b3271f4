"""Margins: a change just below a margin keeps the rank, one just above it does not."""

from dataclasses import replace

import pytest
from fields import ROW_LISTS, RULES, SPAN, make_row
from hypothesis import given, settings

from esrjax.contest.margins import STEP_MS, compute_margins
from esrjax.contest.rank import rank, rerank
from esrjax.contest.rows import Row
from esrjax.contest.scenarios import replace_row


def rank_and_score_if_faster(ranking, row: Row, by_ms: float):
    """The row's main rank and score if its runtime were lower by that much."""
    changed = replace(row, runtime_ms=row.runtime_ms - by_ms)
    after = rerank(ranking, rows=replace_row(ranking.rows, changed))
    entry = next(entry for entry in after.entries if entry.row == changed)
    return entry.rank("main"), entry.score("main")


@given(ROW_LISTS)
@settings(max_examples=60, deadline=None)
def test_runtime_margins_are_exact(rows: list[Row]):
    ranking = rank(rows, RULES)
    for entry, margin in zip(ranking.with_status("ranked"), compute_margins(ranking), strict=False):
        row, main_rank = entry.row, entry.rank("main")
        assert main_rank and margin.team == row.team
        if margin.score_drop is None or margin.score_drop < 1e-8:
            continue  # scores that differ by 0.0001 ms of runtime are equal in double precision
        if margin.speedup_to_next_ms is not None and margin.speedup_to_next_ms > 1e-3:
            speedup = margin.speedup_to_next_ms
            assert rank_and_score_if_faster(ranking, row, speedup - 1e-4)[0] == main_rank
            if row.runtime_ms > margin.speedup_to_next_ms + 1e-4:
                assert rank_and_score_if_faster(ranking, row, speedup + 1e-4)[0] < main_rank
        if margin.slack_ms is not None and margin.slack_ms > 1e-3:
            slack = margin.slack_ms
            assert rank_and_score_if_faster(ranking, row, 1e-4 - slack)[0] == main_rank
            assert rank_and_score_if_faster(ranking, row, -1e-4 - slack)[0] > main_rank


@given(ROW_LISTS)
@settings(max_examples=30, deadline=None)
def test_score_drop_is_that_of_a_step(rows: list[Row]):
    ranking = rank(rows, RULES)
    for entry, margin in zip(ranking.with_status("ranked"), compute_margins(ranking), strict=False):
        score = rank_and_score_if_faster(ranking, entry.row, STEP_MS)[1]
        assert margin.score_drop == pytest.approx(1 - score / entry.score("main"))


@given(ROW_LISTS)
@settings(max_examples=60, deadline=None)
def test_psnr_margin_is_negative_exactly_below_a_threshold(rows: list[Row]):
    ranking = rank(rows, RULES)
    margins = {margin.team: margin for margin in compute_margins(ranking)}
    for entry in (*ranking.with_status("ranked"), *ranking.with_status("below_threshold")):
        mdb = margins[entry.row.team].psnr_margin_mdb
        assert all((mdb[s] < 0) == (s in entry.below_threshold) for s in ("valid", "test"))


def test_runtime_margins_survive_cancellation():
    """Parameters make up nearly all of the score, so that its digits do not show the runtime's."""
    slow = make_row("Slow", runtime_ms=2.0, params_m=2.0)
    fast = replace(make_row("Fast", params_m=2.0), runtime_ms=1.0)
    margins = {margin.team: margin for margin in compute_margins(rank([SPAN, slow, fast], RULES))}
    assert margins["Slow"].speedup_to_next_ms == pytest.approx(1.0)
    assert margins["Fast"].slack_ms == pytest.approx(1.0)


def test_no_speedup_makes_up_for_parameters():
    rows = [SPAN, make_row("Light"), make_row("Heavy", params_m=9.0)]
    assert compute_margins(rank(rows, RULES))[1].speedup_to_next_ms is None


def test_methods_that_pass_only_after_rounding_are_reported():
    ranking = rank([SPAN, make_row("Close", psnr_valid=26.8951), make_row("Clear")], RULES)
    margins = compute_margins(ranking)
    by_rounding = {margin.team: margin.passes_by_rounding for margin in margins}
    assert by_rounding == {"Close": {"valid"}, "Clear": frozenset()}
    mdb = {margin.team: margin.psnr_margin_mdb["valid"] for margin in margins}
    assert mdb == pytest.approx({"Close": 0.1, "Clear": 45.0})
