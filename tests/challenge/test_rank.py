"""Ranking: the published table is reproduced, and invariants hold for arbitrary rows."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from fields import RULES, SPAN
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from esrjax.challenge import results
from esrjax.challenge.rank import TRACKS, Ranking, rank
from esrjax.challenge.results import Row
from esrjax.challenge.table import format_score
from esrjax.errors import RankingError

E2 = math.exp(2)
FIGURES = ("runtime_ms", "params_m", "flops_g")
FAST = replace(SPAN, team="Fast", method="fast", runtime_ms=4.0)
SMALL = replace(SPAN, team="Small", method="small", params_m=0.075, flops_g=5.0)
BLURRED = replace(FAST, team="Blurred", method="blurred", psnr_valid=26.89)

psnrs = st.floats(26.5, 27.5)
costs = st.integers(1, 30).map(float)  # few values, so that ties happen
random_rows = st.builds(
    Row,
    team=st.sampled_from(["IN2GM", "A", "B"]),
    method=st.uuids().map(str),
    psnr_valid=psnrs | st.none(),
    psnr_test=psnrs | st.none(),
    runtime_ms=costs,
    params_m=costs,
    flops_g=costs,
)
row_lists = st.lists(random_rows, max_size=8, unique_by=lambda row: row.method).map(
    lambda rows: [SPAN, *rows]
)


def statuses_and_ranks(ranking: Ranking) -> list[tuple[str, str, object]]:
    return [(entry.row.method, entry.status, entry.ranks) for entry in ranking.entries]


def test_scores_and_ranks_by_hand():
    ranking = rank([SPAN, SMALL, FAST], RULES)
    fast, small = ranking.with_status("ranked")
    assert fast.score("runtime") == pytest.approx(math.e)
    assert fast.score("main") == pytest.approx(0.8 * math.e + 0.2 * E2)
    assert small.score("main") == pytest.approx(0.8 * E2 + 0.2 * math.e)
    assert fast.ranks == {"runtime": 1, "params": 2, "flops": 2, "main": 1}
    assert small.ranks == {"runtime": 2, "params": 1, "flops": 1, "main": 2}


def test_without_thresholds_every_method_is_ranked_by_score_alone():
    unmeasured = replace(SMALL, psnr_valid=None, psnr_test=None)
    with_thresholds = rank([SPAN, FAST, BLURRED, unmeasured], RULES)
    assert [entry.status for entry in with_thresholds.entries] == [
        "ranked",
        "no_psnr",
        "below_threshold",
        "baseline",
    ]
    without = rank([SPAN, FAST, BLURRED, unmeasured], RULES, apply_thresholds=False)
    assert [entry.rank("main") for entry in without.entries] == [1, 1, 3, None]
    assert {e.row.team for e in without.with_status("ranked")} == {"Blurred", "Fast", "Small"}
    assert not any(entry.below_threshold or entry.waiver for entry in without.entries)
    assert (with_thresholds.apply_thresholds, without.apply_thresholds) == (True, False)


@pytest.mark.parametrize(
    ("team", "flops_g", "num_notes"),
    [
        ("XiaomiMM", 1.591738368, 1),
        ("XiaomiMM", 1.59, 1),
        ("XiaomiMM", 9.11, 0),
        ("PKDSR", 1.59, 0),
    ],
)
def test_wrong_published_figure_has_a_note(team, flops_g, num_notes):
    ranking = rank([SPAN, replace(FAST, team=team, flops_g=flops_g)], RULES)
    assert len(ranking.notes) == num_notes
    assert all(note.startswith("XiaomiMM: results.json gives 1.59 G") for note in ranking.notes)


def test_tie_shares_the_better_rank_and_the_next_is_skipped():
    twin, slow = replace(FAST, team="Twin"), replace(FAST, team="Slow", runtime_ms=9.0)
    ranked = rank([SPAN, slow, twin, FAST], RULES).with_status("ranked")
    assert [entry.rank("main") for entry in ranked] == [1, 1, 3]


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"psnr_valid": 26.8951, "psnr_test": 26.9851}, "ranked"),
        ({"psnr_valid": 26.8949}, "below_threshold"),
        ({"psnr_test": 26.9849}, "below_threshold"),
        ({"psnr_test": 26.98, "team": "IN2GM"}, "ranked"),
        ({"psnr_test": None}, "no_psnr"),
        ({"psnr_valid": 26.0, "psnr_test": None}, "below_threshold"),
        ({"method": "span"}, "baseline"),
    ],
)
def test_status_of_a_method(changes: dict[str, object], status: str):
    ranking = rank([SPAN, replace(FAST, **changes)], RULES, baseline_source="published")
    entry = max(ranking.entries, key=lambda entry: entry.row.runtime_ms == FAST.runtime_ms)
    assert entry.status == status
    assert (entry.ranks is not None) == (status == "ranked")


def test_json_has_nulls_for_infinite_scores_and_missing_ranks():
    slow = replace(BLURRED, runtime_ms=8000.0)
    entry = rank([SPAN, slow], RULES).with_status("below_threshold")[0].as_dict()
    assert list(entry)[:10] == [
        "team",
        *(f"score_{track}" for track in TRACKS),
        *(f"rank_{track}" for track in TRACKS),
        "ranked",
    ]
    assert (entry["score_runtime"], entry["score_main"], entry["rank_main"]) == (None, None, None)
    assert entry["ranked"] is False and entry["status"] == "below_threshold"
    assert entry["score_params"] == pytest.approx(E2)
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry


def test_scores_that_overflow_a_float_are_still_ranked():
    slow_rows = [replace(FAST, team=str(k), runtime_ms=8000.0 * k) for k in (3, 1, 2)]
    ranked = rank([SPAN, *slow_rows], RULES).with_status("ranked")
    assert [entry.row.team for entry in ranked] == ["1", "2", "3"]
    assert ranked[0].score("main") == math.inf


def test_figures_can_be_rounded_as_printed():
    row = replace(FAST, runtime_ms=4.00049, params_m=0.1504, flops_g=10.004)
    exact, rounded = (
        rank([SPAN, row], RULES, figures=figures).with_status("ranked")[0].row
        for figures in ("exact", "printed")
    )
    assert exact == row
    assert (rounded.runtime_ms, rounded.params_m, rounded.flops_g) == (4.0, 0.15, 10.0)


@given(row_lists)
@settings(max_examples=60, deadline=None)
def test_baseline_scores_e_squared(rows: list[Row]):
    (baseline,) = rank(rows, RULES).with_status("baseline")
    assert [baseline.score(track) for track in TRACKS] == [E2] * 4


@given(row_lists, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_rows_does_not_matter(rows: list[Row], random):
    shuffled = random.sample(rows, len(rows))
    assert statuses_and_ranks(rank(shuffled, RULES)) == statuses_and_ranks(rank(rows, RULES))


@given(row_lists)
@settings(max_examples=60, deadline=None)
def test_no_row_is_dropped_and_none_below_a_threshold_is_ranked(rows: list[Row]):
    ranking = rank(rows, RULES)
    methods = sorted(entry.row.method for entry in ranking.entries)
    assert methods == sorted(row.method for row in rows)
    for entry in ranking.with_status("ranked"):
        assert entry.row.team == "IN2GM" or not entry.below_threshold
    for entry in ranking.with_status("below_threshold"):
        assert entry.below_threshold and entry.ranks is None


@given(row_lists, st.sampled_from([0.25, 0.5, 2.0, 1024.0]))
@settings(max_examples=60, deadline=None)
def test_ranking_does_not_depend_on_the_speed_of_the_machine(rows: list[Row], factor: float):
    scaled = [replace(row, runtime_ms=row.runtime_ms * factor) for row in rows]
    ranking, scaled_ranking = rank(rows, RULES), rank(scaled, RULES)
    assert statuses_and_ranks(ranking) == statuses_and_ranks(scaled_ranking)
    log_scores = [entry.log_scores for entry in ranking.entries]
    assert log_scores == [entry.log_scores for entry in scaled_ranking.entries]


@given(row_lists)
@settings(max_examples=60, deadline=None)
def test_ranks_follow_scores(rows: list[Row]):
    ranked = rank(rows, RULES).with_status("ranked")
    assume(ranked)
    for track in TRACKS:
        scores = sorted(entry.log_scores[track] for entry in ranked)
        for entry in ranked:
            assert entry.ranks
            assert entry.ranks[track] == 1 + scores.index(entry.log_scores[track])


def test_ranks_of_a_large_field_with_ties_are_as_defined():
    """One more than the number of entries with a better score: four values of each figure."""
    random = Random(0)
    rows = [
        replace(SPAN, team=f"T{k}", method="m", **{f: random.randint(1, 4) for f in FIGURES})
        for k in range(400)
    ]
    ranked = rank([SPAN, *rows], RULES).with_status("ranked")
    for track in TRACKS:
        scores = [entry.log_scores[track] for entry in ranked]
        for entry, score in zip(ranked, scores, strict=True):
            assert entry.rank(track) == 1 + sum(other < score for other in scores)
    assert len({entry.rank("runtime") for entry in ranked}) == 4
    assert len({entry.rank("main") for entry in ranked}) <= 4**3 < len(ranked) == 400


def test_missing_or_duplicate_baseline_is_rejected():
    with pytest.raises(RankingError, match="No usable rows of the baseline 'span'"):
        rank([FAST], RULES)
    with pytest.raises(RankingError, match="No usable rows of the baseline 'span'"):
        rank([replace(SPAN, params_m=0.0), FAST], RULES)
    with pytest.raises(RankingError, match="2 usable rows of the baseline 'span'"):
        rank([SPAN, replace(SPAN, team="Ours", method="span")], RULES)


def test_rows_measured_differently_are_rejected():
    conditions_a = {"device": "GPU A", "conditions": "float32", "spec": "ntire"}
    conditions_b = {"device": "GPU B", "conditions": "bfloat16", "spec": "y"}
    with pytest.raises(RankingError) as error:
        rank([replace(SPAN, **conditions_a), replace(FAST, **conditions_b)], RULES)
    differences = [line.strip() for line in error.value.problem.splitlines()[1:]]
    assert differences == [
        "device: GPU A (SPAN), GPU B (fast)",
        "conditions: bfloat16 (fast), float32 (SPAN)",
        "spec: ntire (SPAN), y (fast)",
    ]
    with pytest.raises(RankingError, match=r"device: GPU A \(SPAN\), unknown \(fast\)"):
        rank([replace(SPAN, device="GPU A"), FAST], RULES)
    images = [{"Set5 (5)": sha256} for sha256 in ("a" * 64, "b" * 64)]
    with pytest.raises(RankingError, match=r"images of Set5 \(5\): a{8} \(SPAN\), b{8} \(fast\)"):
        rank(
            [replace(row, images_sha256=i) for row, i in zip((SPAN, FAST), images, strict=True)],
            RULES,
        )
    of_one = [replace(SPAN, images_sha256=images[0]), FAST]
    assert len(rank(of_one, RULES).entries) == len(rank([SPAN, FAST], RULES).entries)


def test_published_baseline_requires_its_device():
    row = replace(FAST, device=RULES.baseline.device)
    assert len(rank([row], RULES, baseline_source="published").entries) == 1
    with pytest.raises(RankingError, match=r"A6000 \(published baseline\), GPU A \(rows\)"):
        rank([replace(FAST, device="GPU A")], RULES, baseline_source="published")


def read_csv(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as lines:
        return {cells["team"]: cells for cells in csv.DictReader(lines)}


def test_published_table_is_reproduced(reference: Path):
    """All 64 score cells as printed and all 56 ranks, with the measured and published baseline."""
    path = reference / "protocol" / "table1.csv"
    published = read_csv(path)
    for source in ("measured", "published"):
        entries = rank(results.read_rows(path, RULES), RULES, baseline_source=source).entries
        scores = {(e.row.team, t): format_score(e.score(t)) for e in entries for t in TRACKS}
        ranks = {(e.row.team, t): str(e.ranks[t]) for e in entries if e.ranks for t in TRACKS}
        assert (len(scores), len(ranks)) == (64, 56)
        assert scores == {
            (team, t): published[team][f"score_{t}"] for team in published for t in TRACKS
        }
        for (team, track), text in ranks.items():
            assert text == published[team][f"rank_{track}"]
        unranked = {entry.row.team for entry in entries if not entry.ranks}
        assert unranked == {team for team, cells in published.items() if cells["ranked"] == "no"}


@pytest.mark.parametrize(("source", "suffix"), [("measured", ""), ("published", "_pubbase")])
def test_raw_results_give_the_recomputed_table(reference: Path, source, suffix: str):
    folder = reference / "protocol"
    recomputed = read_csv(folder / "table1_from_results_json.csv")
    rows = results.read_rows(folder / "results.json", RULES)
    for entry in rank(rows, RULES, baseline_source=source).entries:
        figures, cells = entry.as_dict(), recomputed.pop(entry.row.team)
        for track in TRACKS:
            assert figures[f"score_{track}"] == pytest.approx(
                float(cells[f"score_{track}{suffix}"]), rel=6e-6
            )
            if source == "measured":
                assert str(figures[f"rank_{track}"] or "") == cells[f"rank_{track}"]
    assert not recomputed
