"""Comparison with a published table: which cells differ, and which causes explain them."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from fields import RULES, SPAN, make_row, with_image_runtimes

from esrjax.challenge import published_table, results
from esrjax.challenge.published_table import diff_tables
from esrjax.challenge.rank import rank
from esrjax.errors import NotFound, UnreadableFile

ROWS = [SPAN, make_row("A", runtime_ms=4.0), make_row("B", params_m=0.2, psnr_valid=26.89)]


def make_published_table(rows, **cells):
    """The table that the ranking of rows would publish, with cells of team A changed."""
    table = published_table.table_cells(rank(rows, RULES))
    published = {team: dict(line) for team, line in table.items()}
    published["A"].update(cells)
    return published


def diff_reasons(rows, published):
    diff = diff_tables(rank(rows, RULES), published)
    return {(cell.team, cell.column): cell.reasons for cell in diff.cell_diffs}


def test_ranking_equals_its_own_table():
    diff = diff_tables(rank(ROWS, RULES), make_published_table(ROWS))
    assert diff.cell_diffs == () and diff.unmatched_teams == ()
    assert diff.agreement["score_main"] == (3, 3)
    num_cells = sum(compared for _, compared in diff.agreement.values())
    assert num_cells == 39  # the rows have no runtimes of valid and test


def test_difference_without_a_cause_has_no_reason():
    published = make_published_table(ROWS, psnr_test="27.11", score_main="5.00")
    assert diff_reasons(ROWS, published) == {("A", "psnr_test"): (), ("A", "score_main"): ()}


def test_cells_are_compared_as_numbers():
    published = make_published_table(ROWS, runtime_avg_ms="4", params_m="0.1500")
    assert diff_reasons(ROWS, published) == {}


def test_rounding_is_the_reason_if_it_reproduces_the_published_cell():
    rows = [SPAN, make_row("A", params_m=0.1454), make_row("B", params_m=0.14549)]
    rounded = [replace(row, params_m=round(row.params_m, 3)) for row in rows]
    reasons_by_cell = diff_reasons(rows, make_published_table(rounded))
    assert ("B", "rank_params") in reasons_by_cell and ("A", "params_m") not in reasons_by_cell
    assert all(
        "rounded to 3 decimals" in reason
        for reasons in reasons_by_cell.values()
        for reason in reasons
    )
    assert all(reasons_by_cell.values())


def test_one_run_explains_a_runtime_only_if_the_published_one_can_be_a_mean_of_five():
    rows = [SPAN, with_image_runtimes(make_row("A"), [4.0, 5.0], [4.0, 4.0])]
    published = make_published_table([SPAN, make_row("A", runtime_ms=4.252)])
    assert "means of 5 runs" in diff_reasons(rows, published)["A", "runtime_avg_ms"][0]
    published = make_published_table([SPAN, make_row("A", runtime_ms=4.253)])
    assert diff_reasons(rows, published)["A", "runtime_avg_ms"] == ()


def test_median_is_not_explained_as_one_run():
    rows = [SPAN, make_row("A", runtime_ms=4.25)]
    published = make_published_table([SPAN, make_row("A", runtime_ms=4.252)])
    assert diff_reasons(rows, published)["A", "runtime_avg_ms"] == ()


def test_another_device_is_a_reason():
    rows = [replace(row, device="GPU A") for row in ROWS]
    published = make_published_table([SPAN, make_row("A", runtime_ms=5.0), ROWS[2]])
    (reason,) = diff_reasons(rows, published)["A", "runtime_avg_ms"]
    assert "GPU A" in reason and "NVIDIA RTX A6000" in reason


def test_teams_of_one_side_only_are_reported_and_ranks_not_compared():
    published = {team: line for team, line in make_published_table(ROWS).items() if team != "B"}
    twins = [*ROWS[:2], replace(ROWS[1], method="second")]
    diff = diff_tables(rank(ROWS, RULES), published)
    assert diff.unmatched_teams == ("B",)
    assert "rank_main" not in diff.agreement and "score_main" in diff.agreement
    assert diff_tables(rank(twins, RULES), published).unmatched_teams == ("A", "A, a", "A, second")


def test_published_table_against_the_raw_results(reference: Path):
    """Every cell that differs has a reason; counts by the reference's own comparison."""
    folder = reference / "protocol"
    ranking = rank(results.read_rows(folder / "results.json", RULES), RULES)
    diff = diff_tables(ranking, published_table.read_table(folder / "table1.csv"))
    assert all(cell.reasons for cell in diff.cell_diffs)
    agreement = diff.agreement
    assert [agreement[c] for c in ("psnr_val", "psnr_test", "params_m", "flops_g")] == [
        (16, 16)
    ] * 3 + [(15, 16)]
    assert [agreement[column] for column in published_table.RUNTIME_COLUMNS] == [(0, 16)] * 3
    assert agreement["rank_main"] == agreement["rank_runtime"] == (16, 16)
    cells = {(cell.team, cell.column): cell for cell in diff.cell_diffs}
    (reason,) = cells["XiaomiMM", "flops_g"].reasons
    assert reason == RULES.notes[0].text
    assert cells["XSR", "rank_flops"].reasons == (reason,)
    assert "rounded to 3" in cells["PKDSR", "rank_params"].reasons[0]
    difference = cells["ZenoSR", "runtime_avg_ms"].relative_difference
    assert difference == pytest.approx(-0.056, abs=1e-3)


def test_published_table_against_itself(reference: Path):
    path = reference / "protocol/table1.csv"
    diff = diff_tables(
        rank(results.read_rows(path, RULES), RULES), published_table.read_table(path)
    )
    assert diff.cell_diffs == ()
    assert sum(compared for _, compared in diff.agreement.values()) == 240


def write_csv(path: Path, *lines: list[str]) -> Path:
    with path.open("w", newline="") as text:
        csv.writer(text).writerows(lines)
    return path


def test_all_problems_of_a_table_are_reported(tmp_path: Path):
    header, *lines = ["team", "psnr_val"], ["A", "good"], ["", "27"], ["B", "27"], ["B", ""]
    path = write_csv(tmp_path / "table.csv", header, *lines)
    with pytest.raises(UnreadableFile) as error:
        published_table.read_table(path)
    number, team, duplicate = error.value.problem.splitlines()[1:]
    assert "line 2: psnr_val" in number and "'good'" in number
    assert "line 3: team" in team
    assert "'B'" in duplicate
    assert error.value.location == str(path)


def test_other_files_are_rejected(tmp_path: Path):
    with pytest.raises(NotFound, match=r"absent\.csv"):
        published_table.read_table(tmp_path / "absent.csv")
    with pytest.raises(UnreadableFile, match="no lines"):
        published_table.read_table(write_csv(tmp_path / "empty.csv"))
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(NotFound, match=r"binary\.csv is not"):
        published_table.read_table(tmp_path / "binary.csv")
