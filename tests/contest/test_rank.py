"""The published ranking is reproduced, and ranking obeys its laws on any rows."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from fields import RULES, SPAN
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from esrjax.contest import results
from esrjax.contest.peers import BaselineError, MixedRows
from esrjax.contest.rank import TRACKS, Ranking, rank
from esrjax.contest.rows import Row
from esrjax.contest.table import printed

E2 = math.exp(2)
FAST = replace(SPAN, team="Fast", method="fast", runtime_ms=4.0)
SMALL = replace(SPAN, team="Small", method="small", params_m=0.075, flops_g=5.0)
BLURRED = replace(FAST, team="Blurred", method="blurred", psnr_valid=26.89)

psnrs = st.floats(26.5, 27.5)
costs = st.integers(1, 30).map(float)  # few values, so that ties happen
rows = st.builds(
    Row,
    team=st.sampled_from(["IN2GM", "A", "B"]),
    method=st.uuids().map(str),
    psnr_valid=psnrs | st.none(),
    psnr_test=psnrs | st.none(),
    runtime_ms=costs,
    params_m=costs,
    flops_g=costs,
)
fields = st.lists(rows, max_size=8, unique_by=lambda row: row.method).map(lambda it: [SPAN, *it])


def places(ranking: Ranking) -> list[tuple[str, str, object]]:
    return [(line.row.method, line.standing, line.ranks) for line in ranking.lines]


def test_scores_and_ranks_by_hand():
    ranking = rank([SPAN, SMALL, FAST], RULES)
    fast, small = ranking.of("ranked")
    assert fast.score("runtime") == pytest.approx(math.e)
    assert fast.score("main") == pytest.approx(0.8 * math.e + 0.2 * E2)
    assert small.score("main") == pytest.approx(0.8 * E2 + 0.2 * math.e)
    assert fast.ranks == {"runtime": 1, "params": 2, "flops": 2, "main": 1}
    assert small.ranks == {"runtime": 2, "params": 1, "flops": 1, "main": 2}


def test_without_floors_every_method_is_ranked_by_score_alone():
    unmeasured = replace(SMALL, psnr_valid=None, psnr_test=None)
    with_floors = rank([SPAN, FAST, BLURRED, unmeasured], RULES)
    assert [line.standing for line in with_floors.lines] == [
        "ranked",
        "unjudged",
        "missed",
        "baseline",
    ]
    without = rank([SPAN, FAST, BLURRED, unmeasured], RULES, floors=False)
    assert [line.ranks and line.ranks["main"] for line in without.lines] == [1, 1, 3, None]
    assert {line.row.team for line in without.of("ranked")} == {"Blurred", "Fast", "Small"}
    assert not any(line.missed or line.waived for line in without.lines)
    assert (with_floors.floors, without.floors) == (True, False)


@pytest.mark.parametrize(
    ("team", "flops_g", "noted"),
    [
        ("XiaomiMM", 1.591738368, 1),
        ("XiaomiMM", 1.59, 1),
        ("XiaomiMM", 9.11, 0),
        ("PKDSR", 1.59, 0),
    ],
)
def test_a_published_figure_that_is_wrong_is_noted_where_it_stands(team, flops_g, noted):
    ranking = rank([SPAN, replace(FAST, team=team, flops_g=flops_g)], RULES)
    assert len(ranking.notes) == noted
    assert all(note.startswith("XiaomiMM: results.json gives 1.59 G") for note in ranking.notes)


def test_a_tie_shares_the_better_rank_and_the_next_is_skipped():
    twin, slow = replace(FAST, team="Twin"), replace(FAST, team="Slow", runtime_ms=9.0)
    ranked = rank([SPAN, slow, twin, FAST], RULES).of("ranked")
    assert [line.ranks and line.ranks["main"] for line in ranked] == [1, 1, 3]


@pytest.mark.parametrize(
    ("changes", "standing"),
    [
        ({"psnr_valid": 26.8951, "psnr_test": 26.9851}, "ranked"),
        ({"psnr_valid": 26.8949}, "missed"),
        ({"psnr_test": 26.9849}, "missed"),
        ({"psnr_test": 26.98, "team": "IN2GM"}, "ranked"),
        ({"psnr_test": None}, "unjudged"),
        ({"psnr_valid": 26.0, "psnr_test": None}, "missed"),
        ({"method": "span"}, "baseline"),
    ],
)
def test_what_a_method_is_counted_as(changes: dict[str, object], standing: str):
    ranking = rank([SPAN, replace(FAST, **changes)], RULES, base="published")
    mine = max(ranking.lines, key=lambda line: line.row.runtime_ms == FAST.runtime_ms)
    assert mine.standing == standing
    assert (mine.ranks is not None) == (standing == "ranked")


def test_an_entry_for_json_has_nulls_where_nothing_is_said():
    slow = replace(BLURRED, runtime_ms=8000.0)
    entry = rank([SPAN, slow], RULES).of("missed")[0].entry()
    assert list(entry)[:10] == [
        "team",
        *(f"score_{track}" for track in TRACKS),
        *(f"rank_{track}" for track in TRACKS),
        "ranked",
    ]
    assert (entry["score_runtime"], entry["score_main"], entry["rank_main"]) == (None, None, None)
    assert entry["ranked"] is False and entry["score_params"] == pytest.approx(E2)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_scores_too_large_for_a_float_still_rank():
    ensembles = [replace(FAST, team=str(k), runtime_ms=8000.0 * k) for k in (3, 1, 2)]
    ranked = rank([SPAN, *ensembles], RULES).of("ranked")
    assert [line.row.team for line in ranked] == ["1", "2", "3"]
    assert ranked[0].score("main") == math.inf


def test_the_printed_figures_can_be_scored():
    row = replace(FAST, runtime_ms=4.00049, params_m=0.1504, flops_g=10.004)
    exact, rounded = (
        rank([SPAN, row], RULES, figures=figures).of("ranked")[0].row
        for figures in ("exact", "printed")
    )
    assert exact == row
    assert (rounded.runtime_ms, rounded.params_m, rounded.flops_g) == (4.0, 0.15, 10.0)


@given(fields)
@settings(max_examples=60, deadline=None)
def test_the_baseline_scores_e_squared(field: list[Row]):
    (baseline,) = rank(field, RULES).of("baseline")
    assert [baseline.score(track) for track in TRACKS] == [E2] * 4


@given(fields, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_rows_does_not_matter(field: list[Row], random):
    shuffled = random.sample(field, len(field))
    assert places(rank(shuffled, RULES)) == places(rank(field, RULES))


@given(fields)
@settings(max_examples=60, deadline=None)
def test_no_row_is_dropped_and_none_under_a_floor_is_ranked(field: list[Row]):
    ranking = rank(field, RULES)
    assert sorted(line.row.method for line in ranking.lines) == sorted(r.method for r in field)
    for line in ranking.of("ranked"):
        assert line.row.team == "IN2GM" or not line.missed
    for line in ranking.of("missed"):
        assert line.missed and line.ranks is None


@given(fields, st.sampled_from([0.25, 0.5, 2.0, 1024.0]))
@settings(max_examples=60, deadline=None)
def test_another_machine_at_another_speed_ranks_the_same(field: list[Row], speed: float):
    elsewhere = [replace(row, runtime_ms=row.runtime_ms * speed) for row in field]
    here, there = rank(field, RULES), rank(elsewhere, RULES)
    assert places(here) == places(there)
    assert [line.logs for line in here.lines] == [line.logs for line in there.lines]


@given(fields)
@settings(max_examples=60, deadline=None)
def test_ranks_follow_scores(field: list[Row]):
    ranked = rank(field, RULES).of("ranked")
    assume(ranked)
    for track in TRACKS:
        scores = sorted(line.logs[track] for line in ranked)
        for line in ranked:
            assert line.ranks and line.ranks[track] == 1 + scores.index(line.logs[track])


def test_no_baseline_or_two_of_them_is_refused():
    with pytest.raises(BaselineError, match="no usable rows of the baseline 'span'"):
        rank([FAST], RULES)
    with pytest.raises(BaselineError, match="no usable rows of the baseline 'span'"):
        rank([replace(SPAN, params_m=0.0), FAST], RULES)
    with pytest.raises(BaselineError, match="2 usable rows of the baseline 'span'"):
        rank([SPAN, replace(SPAN, team="Ours", method="span")], RULES)


def test_rows_that_cannot_be_compared_are_refused():
    here = {"device": "GPU A", "conditions": "float32", "spec": "ntire"}
    there = {"device": "GPU B", "conditions": "bfloat16", "spec": "y"}
    with pytest.raises(MixedRows) as error:
        rank([replace(SPAN, **here), replace(FAST, **there)], RULES)
    assert str(error.value).splitlines()[:4] == [
        "the rows differ in 3 respects:",
        "    device: GPU A (SPAN), GPU B (fast)",
        "    conditions: bfloat16 (fast), float32 (SPAN)",
        "    spec: ntire (SPAN), y (fast)",
    ]
    with pytest.raises(MixedRows, match=r"device: GPU A \(SPAN\), unknown \(fast\)"):
        rank([replace(SPAN, device="GPU A"), FAST], RULES)


def test_the_published_baseline_belongs_to_its_machine():
    there = replace(FAST, device=RULES.baseline.device)
    assert len(rank([there], RULES, base="published").lines) == 1
    with pytest.raises(MixedRows, match=r"A6000 \(published baseline\), GPU A \(rows\)"):
        rank([replace(FAST, device="GPU A")], RULES, base="published")


def read(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as lines:
        return {cells["team"]: cells for cells in csv.DictReader(lines)}


def test_the_published_table_is_reproduced(reference: Path):
    """All 64 score cells as printed and all 56 ranks, from either baseline."""
    path = reference / "protocol" / "table1.csv"
    published = read(path)
    for base in ("own", "published"):
        lines = rank(results.read(path, RULES), RULES, base=base).lines
        scores = {(x.row.team, t): printed(x.score(t)) for x in lines for t in TRACKS}
        ranks = {(x.row.team, t): str(x.ranks[t]) for x in lines if x.ranks for t in TRACKS}
        assert (len(scores), len(ranks)) == (64, 56)
        assert scores == {(k, t): published[k][f"score_{t}"] for k in published for t in TRACKS}
        for (team, track), place in ranks.items():
            assert place == published[team][f"rank_{track}"]
        unranked = {x.row.team for x in lines if not x.ranks}
        assert unranked == {team for team, cells in published.items() if cells["ranked"] == "no"}


@pytest.mark.parametrize(("base", "ending"), [("own", ""), ("published", "_pubbase")])
def test_the_raw_results_give_the_recomputed_table(reference: Path, base, ending: str):
    folder = reference / "protocol"
    recomputed = read(folder / "table1_from_results_json.csv")
    for line in rank(results.read(folder / "results.json", RULES), RULES, base=base).lines:
        entry, cells = line.entry(), recomputed.pop(line.row.team)
        for track in TRACKS:
            assert entry[f"score_{track}"] == pytest.approx(
                float(cells[f"score_{track}{ending}"]), rel=6e-6
            )
            if base == "own":
                assert str(entry[f"rank_{track}"] or "") == cells[f"rank_{track}"]
    assert not recomputed
