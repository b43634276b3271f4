"""What the rules let one ask, and which ranks it changes."""

from dataclasses import replace

import pytest
from fields import FIELDS, RULES, SPAN, other, timed
from hypothesis import given, settings

from esrjax.contest import results
from esrjax.contest.rank import TRACKS, again, rank
from esrjax.contest.rows import Row
from esrjax.contest.scenarios import moves, scenarios, warm


def told(ranking, words: str) -> list[tuple[str, str, int | None, int | None]]:
    (found,) = [each for each in scenarios(ranking) if words in each.name]
    return [(move.team, move.track, move.before, move.after) for move in found.moves]


def test_the_first_picture_alone_is_left_out():
    row = timed(other("A"), [100.0, 2.0, 4.0], [50.0, 4.0])
    assert warm(row).runtime_ms == pytest.approx((3.0 + 27.0) / 2)
    assert warm(other("B")) == other("B")


def test_a_cold_start_can_cost_a_rank():
    cold = timed(other("Cold"), [100.0, *[6.0] * 19], [6.0] * 20)
    ranking = rank([SPAN, cold, other("Warm", runtime_ms=7.0)], RULES)
    assert ("Cold", "main", 2, 1) in told(ranking, "cold start")
    assert not any("cold" in each.name for each in scenarios(rank([SPAN, other("A")], RULES)))


def test_a_noted_figure_is_exchanged_for_the_other_one():
    for figure, words in ((1.591738368, "9.11"), (9.107931136, "1.59"), (9.11, "1.59")):
        row = replace(other("XiaomiMM", flops_g=figure), method="net")
        changes = told(rank([SPAN, row, other("B", flops_g=5.0)], RULES), f"{words} G FLOPs")
        assert {(team, track) for team, track, *_ in changes} >= {
            ("XiaomiMM", "flops"),
            ("B", "flops"),
        }


def test_without_a_waiver_the_team_is_not_ranked():
    ranking = rank([SPAN, other("IN2GM", psnr_test=26.98), other("Z", runtime_ms=9.0)], RULES)
    changes = told(ranking, "without IN2GM")
    assert {(team, before, after) for team, track, before, after in changes if track == "main"} == {
        ("IN2GM", 1, None),
        ("Z", 2, 1),
    }


def test_unrounded_floors_leave_out_who_passes_by_rounding():
    ranking = rank([SPAN, other("Close", psnr_valid=26.8951)], RULES)
    assert ("Close", "main", 1, None) in told(ranking, "not rounded")
    open_to_all = again(ranking)
    assert not any("floors" in e.name for e in scenarios(replace(open_to_all, floors=False)))


def test_rows_of_another_machine_are_not_held_against_the_published_baseline():
    def asked(rows: list[Row]) -> bool:
        return any("published baseline" in each.name for each in scenarios(rank(rows, RULES)))

    assert asked([SPAN, other("A")])
    assert not asked([replace(row, device="GPU A") for row in (SPAN, other("A"))])


@given(FIELDS, FIELDS)
@settings(max_examples=40, deadline=None)
def test_moves_are_the_ranks_that_differ(field: list[Row], figures: list[Row]):
    """Whatever figures the same methods get, applying the moves gives the other ranking."""
    pairs = list(zip(field[1:], figures[1:], strict=False))
    changed = [SPAN, *(replace(new, team=old.team) for old, new in pairs)]
    before, after = rank([SPAN, *(old for old, _ in pairs)], RULES), rank(changed, RULES)
    ranks = {(x.row.team, track): x.place(track) for x in before.lines for track in TRACKS}
    for move in moves(before, after):
        assert ranks[move.team, move.track] == move.before != move.after
        ranks[move.team, move.track] = move.after
    assert ranks == {(x.row.team, track): x.place(track) for x in after.lines for track in TRACKS}


def test_what_the_organisers_results_hang_on(reference):
    """Source: the reference's own recomputation from the same file."""
    ranking = rank(results.read(reference / "protocol/results.json", RULES), RULES)
    assert told(ranking, "cold start") == []
    assert {(team, before, after) for team, _, before, after in told(ranking, "9.11 G")} == {
        ("XiaomiMM", 1, 6),
        ("ZenoSR", 2, 1),
        ("XuptSR", 3, 2),
        ("XSR", 4, 3),
        ("VARH-AI", 5, 4),
        ("Sunflower", 6, 5),
    }
    gone = {team for team, track, _, after in told(ranking, "not rounded") if after is None}
    assert gone == {"BOE AIoT", "XuptSR", "ZenoSR", "XSR", "VARH-AI"}
    main = [entry for entry in told(ranking, "without IN2GM") if entry[1] == "main"]
    assert len(main) == 8 and ("XSR", "main", 8, 7) in main
    assert told(ranking, "as the contest prints them") == [("PKDSR", "params", 8, 7)]
