"""A printed table is held against a ranking cell by cell, and reasons are found, not presumed."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from fields import RULES, SPAN, other, timed

from esrjax.contest import prints, results
from esrjax.contest.disagreements import compare
from esrjax.contest.rank import rank
from esrjax.contest.results import SourceError, UnknownSource

ROWS = [SPAN, other("A", runtime_ms=4.0), other("B", params_m=0.2, psnr_valid=26.89)]


def print_of(rows, **cells):
    """What the ranking of rows prints, with cells of team A changed."""
    said = {team: dict(held) for team, held in prints.cells(rank(rows, RULES)).items()}
    said["A"].update(cells)
    return said


def differing(rows, said):
    found = compare(rank(rows, RULES), said).disagreements
    return {(each.team, each.column): each.reasons for each in found}


def test_a_ranking_agrees_with_its_own_print():
    comparison = compare(rank(ROWS, RULES), print_of(ROWS))
    assert comparison.disagreements == () and comparison.strangers == ()
    assert comparison.agree["score_main"] == (3, 3)
    assert sum(of for _, of in comparison.agree.values()) == 39  # no runtimes of valid and test


def test_a_cell_that_nothing_explains_stays_unexplained():
    said = print_of(ROWS, psnr_test="27.11", score_main="5.00")
    assert differing(ROWS, said) == {("A", "psnr_test"): (), ("A", "score_main"): ()}


def test_another_way_of_writing_a_number_is_no_disagreement():
    assert differing(ROWS, print_of(ROWS, runtime_avg_ms="4", params_m="0.1500")) == {}


def test_rounding_is_the_reason_where_undoing_it_gives_the_print():
    exact = [SPAN, other("A", params_m=0.1454), other("B", params_m=0.14549)]
    said = print_of([replace(row, params_m=round(row.params_m, 3)) for row in exact])
    found = differing(exact, said)
    assert ("B", "rank_params") in found and ("A", "params_m") not in found
    assert all(
        "rounded to 3 decimals" in reason for reasons in found.values() for reason in reasons
    )
    assert all(found.values())


def test_a_run_is_told_from_the_mean_of_five_only_where_the_print_can_be_one():
    ours = [SPAN, timed(other("A"), [4.0, 5.0], [4.0, 4.0])]
    said = print_of([SPAN, other("A", runtime_ms=4.252)])
    assert "mean of 5" in differing(ours, said)["A", "runtime_avg_ms"][0]
    said = print_of([SPAN, other("A", runtime_ms=4.253)])
    assert differing(ours, said)["A", "runtime_avg_ms"] == ()


def test_a_median_is_not_said_to_be_one_run():
    said = print_of([SPAN, other("A", runtime_ms=4.252)])
    assert differing([SPAN, other("A", runtime_ms=4.25)], said)["A", "runtime_avg_ms"] == ()


def test_another_machine_is_named():
    ours = [replace(row, device="GPU A") for row in ROWS]
    said = print_of([SPAN, other("A", runtime_ms=5.0), ROWS[2]])
    (reason,) = differing(ours, said)["A", "runtime_avg_ms"]
    assert reason == "timed on GPU A here, on NVIDIA RTX A6000 in print"


def test_teams_of_one_side_alone_are_told():
    said = {team: cells for team, cells in print_of(ROWS).items() if team != "B"}
    twins = [*ROWS[:2], replace(ROWS[1], method="second")]
    comparison = compare(rank(ROWS, RULES), said)
    assert comparison.strangers == ("B",)
    assert "rank_main" not in comparison.agree and "score_main" in comparison.agree
    assert compare(rank(twins, RULES), said).strangers == ("A", "A, a", "A, second")


def test_the_published_table_from_the_raw_results(reference: Path):
    """Every cell that differs has a reason; counts by the reference's own comparison."""
    folder = reference / "protocol"
    ranking = rank(results.read(folder / "results.json", RULES), RULES)
    comparison = compare(ranking, prints.read(folder / "table1.csv"))
    assert all(each.reasons for each in comparison.disagreements)
    agree = comparison.agree
    assert [agree[c] for c in ("psnr_val", "psnr_test", "params_m", "flops_g")] == [
        (16, 16)
    ] * 3 + [(15, 16)]
    assert [agree[column] for column in prints.RUNTIMES] == [(0, 16)] * 3
    assert agree["rank_main"] == agree["rank_runtime"] == (16, 16)
    found = {(each.team, each.column): each for each in comparison.disagreements}
    (reason,) = found["XiaomiMM", "flops_g"].reasons
    assert reason == RULES.notes[0].text
    assert found["XSR", "rank_flops"].reasons == (reason,)
    assert "rounded to 3" in found["PKDSR", "rank_params"].reasons[0]
    assert found["ZenoSR", "runtime_avg_ms"].difference == pytest.approx(-0.056, abs=1e-3)


def test_the_published_table_against_itself(reference: Path):
    path = reference / "protocol/table1.csv"
    comparison = compare(rank(results.read(path, RULES), RULES), prints.read(path))
    assert comparison.disagreements == ()
    assert sum(of for _, of in comparison.agree.values()) == 240


def write(path: Path, *lines: list[str]) -> Path:
    with path.open("w", newline="") as text:
        csv.writer(text).writerows(lines)
    return path


def test_a_printed_table_tells_all_that_is_wrong_with_it(tmp_path: Path):
    head, *wrong = ["team", "psnr_val"], ["A", "good"], ["", "27"], ["B", "27"], ["B", ""]
    with pytest.raises(SourceError) as error:
        prints.read(write(tmp_path / "table.csv", head, *wrong))
    assert str(error.value).splitlines()[:4] == [
        "the printed table has 3 mistakes:",
        "    line 2: psnr_val should be a number, found 'good'",
        "    line 3: team is missing",
        "    team 'B' is there twice",
    ]


def test_what_is_no_table_is_refused(tmp_path: Path):
    with pytest.raises(UnknownSource, match="no table at"):
        prints.read(tmp_path / "absent.csv")
    with pytest.raises(SourceError, match="1 mistake:\n    no lines"):
        prints.read(write(tmp_path / "empty.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UnknownSource, match=r"binary\.csv is not a table"):
        prints.read(tmp_path / "binary.csv")
