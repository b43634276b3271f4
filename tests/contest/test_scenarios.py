"""Scenarios: which of them apply to a ranking, and which ranks they change."""

from dataclasses import replace

import pytest
from fields import ROW_LISTS, RULES, SPAN, make_row, with_image_runtimes
from hypothesis import given, settings

from esrjax.contest import results
from esrjax.contest.rank import TRACKS, rank, rerank
from esrjax.contest.rows import Row
from esrjax.contest.scenarios import all_scenarios, rank_changes, without_cold_start


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
