"""PSNR thresholds: what counts is the rounded PSNR, and what rounding adds is reported."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esrjax.challenge import results, rules
from esrjax.challenge.record import Result, entries_json
from esrjax.challenge.results import row_of_result
from esrjax.challenge.submission import (
    model_number,
    results_entry,
    threshold_checks,
    threshold_text,
)
from esrjax.errors import InvalidArgument, SubmissionError, UnreadableFile

RULES = rules.load_rules("ntire2026")


def check_valid(psnr: float, num_images: int = 200, team: str = "Ours"):
    (check,) = threshold_checks({"valid": (psnr, num_images)}, RULES, team)
    return check


@pytest.mark.parametrize(
    ("psnr", "rounded_mdb", "unrounded_mdb", "outcome"),
    [
        (26.9187, 20, 18.7, "passes"),
        (26.90, 0, 0, "passes"),
        (26.8964, 0, -3.6, "passes only after rounding"),
        (26.8949, -10, -5.1, "fails"),
    ],
)
def test_margins_before_and_after_rounding(psnr, rounded_mdb, unrounded_mdb, outcome):
    check = check_valid(psnr)
    assert (check.rounded_margin_mdb, check.outcome) == (rounded_mdb, outcome)
    assert check.unrounded_margin_mdb == pytest.approx(unrounded_mdb, abs=1e-6)
    text = threshold_text(check)
    for words in ("26.90", f"{rounded_mdb:+.0f} mdB", f"{unrounded_mdb:+.1f} mdB"):
        assert words in text
    assert text.endswith(f"; {outcome}")


@given(st.floats(26, 28))
def test_rounding_changes_a_margin_by_at_most_half_a_step(psnr):
    check = check_valid(psnr)
    assert abs(check.rounded_margin_mdb - check.unrounded_margin_mdb) <= 5 + 1e-6
    assert (check.outcome == "fails") == (round(psnr, 2) < 26.9)


def test_incomplete_splits_are_not_checked_and_waivers_apply():
    assert check_valid(20.0, num_images=5).outcome == "not checked"
    assert threshold_text(check_valid(20.0, 5)).endswith("not checked: 5 images instead of 200")
    assert check_valid(20.0, team="IN2GM").outcome == "waived"
    assert "ranked 7th by the organisers" in threshold_text(check_valid(20.0, team="IN2GM"))


def test_five_official_results_pass_only_after_rounding(reference):
    entries = json.loads((reference / "protocol/results.json").read_text())
    teams_by_outcome: dict[str, set[str]] = {}
    for key, entry in entries.items():
        team = RULES.teams[key.strip().split("_")[0].lstrip("0").zfill(2)]
        means = {split: (entry[f"{split}_ave_psnr"], 200) for split in ("valid", "test")}
        for check in threshold_checks(means, RULES, team):
            teams_by_outcome.setdefault(check.outcome, set()).add(team)
    expected = {"BOE AIoT", "XSR", "ZenoSR", "XuptSR", "VARH-AI"}
    assert teams_by_outcome["passes only after rounding"] == expected
    assert (teams_by_outcome["fails"], teams_by_outcome["waived"]) == ({"MDAP"}, {"IN2GM"})


# Submission: the entry has the organisers' keys and types, and `rank` reads its figures back


TWO_IMAGES = replace(RULES, psnr_thresholds=replace(RULES.psnr_thresholds, num_images=2))
SHARED_FIELDS = "psnr_valid psnr_test runtime_ms params_m flops_g".split()


def test_entry_has_the_organisers_keys_in_their_order_and_types(
    reference: Path, both_splits: Result
) -> None:
    official = json.loads((reference / "protocol/results.json").read_text())
    ours = json.loads(entries_json({"23_net": results_entry(both_splits)}))["23_net"]
    for entry in official.values():
        assert list(entry) == list(ours)
        assert {key: type(value) for key, value in entry.items()} == {
            key: type(value) for key, value in ours.items()
        }


def test_row_read_from_an_entry_is_the_row_of_the_result(tmp_path: Path, both_splits: Result):
    (tmp_path / "results.json").write_text(entries_json({"23_net": results_entry(both_splits)}))
    (read,) = results.read_rows(tmp_path / "results.json", TWO_IMAGES)
    row = row_of_result(both_splits, TWO_IMAGES, protocol_timing=True)
    assert {name: getattr(read, name) for name in SHARED_FIELDS} == pytest.approx(
        {name: getattr(row, name) for name in SHARED_FIELDS}
    )
    assert (read.method, read.psnr_valid, read.runtime_ms) == ("net", 26.75, 15.0)
    for split in ("valid", "test"):
        # results.json has no image names, and only valid starts cold in the organisers' program.
        assert replace(read.series[split], image_names=(), cold_start=True) == replace(
            row.series[split], image_names=()
        )


def test_entry_has_the_organisers_units(both_splits: Result) -> None:
    entry = results_entry(both_splits)
    assert (entry.num_parameters, entry.flops, entry.num_conv) == (0.150688, 9.833807872, 22)
    assert (entry.valid_memory, entry.valid_runtime) == (812.5, (30.0, 10.0))


def test_memory_falls_back_to_the_compilers_plan(both_splits: Result) -> None:
    def with_memory(**memory: float | None) -> Result:
        timings = {s: replace(t, **memory) for s, t in both_splits.protocol_timing.items()}
        return replace(both_splits, protocol_timing=timings)

    assert results_entry(with_memory(peak_mib=None, executable_mib=20.5)).test_memory == 20.5
    with pytest.raises(SubmissionError, match="Some GPU"):
        results_entry(with_memory(peak_mib=None))


@pytest.mark.parametrize(
    ("team", "requested", "number"),
    [("XiaomiMM", None, 22), ("XiaomiMM", 22, 22), ("XiaomiMM", 77, 77), ("Ours", 23, 23)],
)
def test_model_number_is_the_requested_or_the_assigned_one(team, requested, number):
    assert model_number(RULES, team, requested) == number


def test_missing_number_and_that_of_another_team_are_rejected() -> None:
    with pytest.raises(InvalidArgument, match="--id 22 belongs to XiaomiMM"):
        model_number(RULES, "Ours", 22)
    with pytest.raises(InvalidArgument, match="'Ours'") as error:
        model_number(RULES, "Ours", None)
    assert "--id" in error.value.remedy


def test_unknown_psnr_is_null_and_is_read_as_unknown(tmp_path: Path, both_splits: Result) -> None:
    valid_only = replace(both_splits, quality={"valid": both_splits.quality["valid"]})
    text = entries_json({"23_net": results_entry(valid_only)})
    figures = json.loads(text)["23_net"]
    assert len(figures) == 14
    assert (figures["test_psnr"], figures["test_ave_psnr"]) == (None, None)
    assert figures["test_ave_runtime"] == 10.0
    (tmp_path / "results.json").write_text(text)
    (row,) = results.read_rows(tmp_path / "results.json", TWO_IMAGES)
    assert (row.psnr_valid, row.psnr_test, row.series["test"].psnr) == (26.75, None, ())
    figures["test_psnr"] = [27.0, 28.0]
    (tmp_path / "results.json").write_text(json.dumps({"23_net": figures}))
    with pytest.raises(UnreadableFile, match="test_ave_psnr is null, test_psnr has 2 values"):
        results.read_rows(tmp_path / "results.json", TWO_IMAGES)
