"""Sensitivity of a ranking: bootstrap, margins, scenarios and what-if changes.

The widths of bootstrap intervals are as theory predicts, and shared variation cancels.
"""

from dataclasses import replace

import numpy as np
import pytest
from fields import ROW_LISTS, RULES, SPAN, make_row, with_image_runtimes
from hypothesis import given, settings

from esrjax.challenge import results
from esrjax.challenge.rank import TRACKS, rank, rerank
from esrjax.challenge.results import Row
from esrjax.challenge.sensitivity import (
    STEP_MS,
    all_scenarios,
    apply_changes,
    compute_margins,
    parse_changes,
    rank_changes,
    rank_stability,
    replace_row,
    what_if_scenario,
    without_cold_start,
)
from esrjax.errors import InvalidArgument

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


# --- Margins: a change just below a margin keeps the rank, one just above it does not ---


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


def test_neighbours_of_tied_methods():
    """The next better score is that of no tied one; a tied one is next among the worse."""
    fast, *tied = (make_row(name, runtime_ms=ms) for name, ms in dict(F=4, A=6, B=6, C=6).items())
    slow = make_row("S", runtime_ms=7)
    margins = {m.team: m for m in compute_margins(rank([SPAN, slow, fast, *tied], RULES))}
    distances = {t: (m.speedup_to_next_ms, m.slack_ms) for t, m in margins.items()}
    assert distances["F"] == (None, pytest.approx(2))
    assert distances["A"] == distances["B"] == distances["C"] == (pytest.approx(2), 0)
    assert distances["S"] == (pytest.approx(1), None)


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


# --- Scenarios: which of them apply to a ranking, and which ranks they change ---


def changes_of(ranking, words: str) -> list[tuple[str, str, int | None, int | None]]:
    """Rank changes of the one scenario whose name contains these words."""
    (scenario,) = [scenario for scenario in all_scenarios(ranking) if words in scenario.name]
    return [(c.team, c.track, c.before, c.after) for c in scenario.rank_changes]


def test_cold_start_is_the_first_image_of_the_first_split():
    row = with_image_runtimes(make_row("A"), [100.0, 2.0, 4.0], [50.0, 4.0])
    assert without_cold_start(row).runtime_ms == pytest.approx((3.0 + 27.0) / 2)
    assert without_cold_start(make_row("B")) == make_row("B")


def test_cold_start_can_cost_a_rank():
    cold = with_image_runtimes(make_row("Cold"), [100.0, *[6.0] * 19], [6.0] * 20)
    ranking = rank([SPAN, cold, make_row("Warm", runtime_ms=7.0)], RULES)
    assert ("Cold", "main", 2, 1) in changes_of(ranking, "cold start")
    medians = rank([SPAN, make_row("A")], RULES)
    assert not any("cold" in scenario.name for scenario in all_scenarios(medians))


def test_figure_with_a_note_is_replaced_by_the_other_one():
    for flops_g, other in ((1.591738368, "9.11"), (9.107931136, "1.59"), (9.11, "1.59")):
        row = replace(make_row("XiaomiMM", flops_g=flops_g), method="net")
        ranking = rank([SPAN, row, make_row("B", flops_g=5.0)], RULES)
        changes = changes_of(ranking, f"{other} G FLOPs")
        assert {(team, track) for team, track, *_ in changes} >= {
            ("XiaomiMM", "flops"),
            ("B", "flops"),
        }


def test_team_is_not_ranked_without_its_waiver():
    rows = [SPAN, make_row("IN2GM", psnr_test=26.98), make_row("Z", runtime_ms=9.0)]
    changes = changes_of(rank(rows, RULES), "waiver of IN2GM")
    assert {(team, before, after) for team, track, before, after in changes if track == "main"} == {
        ("IN2GM", 1, None),
        ("Z", 2, 1),
    }


def test_unrounded_psnr_excludes_teams_that_pass_only_after_rounding():
    ranking = rank([SPAN, make_row("Close", psnr_valid=26.8951)], RULES)
    assert ("Close", "main", 1, None) in changes_of(ranking, "unrounded")
    without_thresholds = replace(rerank(ranking), apply_thresholds=False)
    assert not any("threshold" in s.name for s in all_scenarios(without_thresholds))


def test_published_baseline_applies_only_to_rows_of_its_device():
    def has_scenario(rows: list[Row]) -> bool:
        scenarios = all_scenarios(rank(rows, RULES))
        return any("published baseline" in scenario.name for scenario in scenarios)

    rows = [SPAN, make_row("A")]
    assert has_scenario(rows)
    assert not has_scenario([replace(row, device="GPU A") for row in rows])


@given(ROW_LISTS, ROW_LISTS)
@settings(max_examples=40, deadline=None)
def test_rank_changes_turn_one_ranking_into_the_other(rows: list[Row], figures: list[Row]):
    """The same methods get other figures; applying the changes gives the other ranking's ranks."""
    pairs = list(zip(rows[1:], figures[1:], strict=False))
    changed = [SPAN, *(replace(new, team=old.team) for old, new in pairs)]
    before, after = rank([SPAN, *(old for old, _ in pairs)], RULES), rank(changed, RULES)
    ranks = {(e.row.team, track): e.rank(track) for e in before.entries for track in TRACKS}
    for change in rank_changes(before, after):
        assert ranks[change.team, change.track] == change.before != change.after
        ranks[change.team, change.track] = change.after
    assert ranks == {(e.row.team, t): e.rank(t) for e in after.entries for t in TRACKS}


def test_scenarios_of_the_organisers_results(reference):
    """Source: the reference's own recomputation from the same file."""
    ranking = rank(results.read_rows(reference / "protocol/results.json", RULES), RULES)
    assert changes_of(ranking, "cold start") == []
    assert {(team, before, after) for team, _, before, after in changes_of(ranking, "9.11 G")} == {
        ("XiaomiMM", 1, 6),
        ("ZenoSR", 2, 1),
        ("XuptSR", 3, 2),
        ("XSR", 4, 3),
        ("VARH-AI", 5, 4),
        ("Sunflower", 6, 5),
    }
    excluded = {team for team, _, _, after in changes_of(ranking, "unrounded") if after is None}
    assert excluded == {"BOE AIoT", "XuptSR", "ZenoSR", "XSR", "VARH-AI"}
    main = [c for c in changes_of(ranking, "waiver of IN2GM") if c[1] == "main"]
    assert len(main) == 8 and ("XSR", "main", 8, 7) in main
    rounded = changes_of(ranking, "rounded as in the published table")
    assert rounded == [("PKDSR", "params", 8, 7)]


# --- What-if changes of figures, and errors for malformed or impossible ones ---


TWO_ROWS = [SPAN, make_row("Fast", runtime_ms=4.0), make_row("Slow", runtime_ms=12.0)]


def rows_after(*texts: str):
    return {row.team: row for row in apply_changes(TWO_ROWS, parse_changes(texts), RULES)}


def test_signed_numbers_add_and_unsigned_ones_replace():
    rows = rows_after("fast:runtime=-0.5", "SLOW:flops=2", "slow:params=+1e-3", "Fast:psnr=-0.04")
    assert rows["Fast"].runtime_ms == 3.5
    assert rows["Slow"].flops_g == 2.0
    assert rows["Slow"].params_m == pytest.approx(0.151)
    assert rows["Fast"].psnr_valid == pytest.approx(26.90)
    assert rows["Fast"].psnr_test == pytest.approx(26.97)
    assert rows["EfficientSR Organizers"] == SPAN


def test_changes_of_one_method_are_applied_in_order():
    assert rows_after("Fast:runtime=2", "Fast:runtime=+1")["Fast"].runtime_ms == 3.0


def test_change_of_the_baseline_applies_to_its_interleaved_runtimes():
    rows = [replace(row, baseline_ms=8.0) for row in TWO_ROWS]
    changed = apply_changes(rows, parse_changes(["SPAN:runtime=+1"]), RULES)
    assert [row.baseline_ms for row in changed] == [9.0] * 3
    (baseline,) = rank(changed, RULES).with_status("baseline")
    assert baseline.log_scores["runtime"] == pytest.approx(2.0)


def test_scenario_lists_the_rank_changes():
    before = rank(TWO_ROWS, RULES)
    changes = parse_changes(["Slow:runtime=-9"])
    scenario = what_if_scenario(
        changes, before, rank(apply_changes(TWO_ROWS, changes, RULES), RULES)
    )
    assert scenario.name == "What if Slow runtime -9 ms"
    main = {(c.team, c.before, c.after) for c in scenario.rank_changes if c.track == "main"}
    assert main == {("Slow", 2, 1), ("Fast", 1, 2)}


@pytest.mark.parametrize(
    "text", ["Fast", "Fast:runtime", "Fast:speed=1", "Fast:runtime=x", ":psnr=1"]
)
def test_malformed_changes_are_all_reported(text):
    with pytest.raises(InvalidArgument) as error:
        parse_changes(["Fast:runtime=1", text, "Fast:colour=2"])
    assert repr(text) in str(error.value) and "'Fast:colour=2'" in str(error.value)
    assert "'Fast:runtime=1'" not in str(error.value)


def test_unknown_or_ambiguous_methods_are_rejected():
    with pytest.raises(InvalidArgument, match="did you mean 'slow'"):
        rows_after("slov:runtime=1")
    with pytest.raises(InvalidArgument, match="'fast'"):
        apply_changes([*TWO_ROWS, TWO_ROWS[1]], parse_changes(["fast:runtime=1"]), RULES)


@pytest.mark.parametrize("text", ["Fast:runtime=-4", "Fast:params=-1", "Fast:psnr=0"])
def test_impossible_figures_are_rejected(text):
    with pytest.raises(InvalidArgument, match=r"'Fast .* (M|ms|dB)'"):
        rows_after(text)


def test_unknown_figures_can_be_set_but_not_changed_by_a_difference():
    unknown = replace(TWO_ROWS[1], psnr_test=None)
    with pytest.raises(InvalidArgument, match="psnr_test is unknown"):
        apply_changes([SPAN, unknown], parse_changes(["Fast:psnr_test=+0.1"]), RULES)
    (_, row) = apply_changes([SPAN, unknown], parse_changes(["Fast:psnr_test=27"]), RULES)
    assert row.psnr_test == 27.0
