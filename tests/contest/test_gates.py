"""PSNR thresholds: what counts is the rounded PSNR, and what rounding adds is reported."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esrjax.contest import rules
from esrjax.contest.factsheet import threshold_text
from esrjax.contest.gates import threshold_checks

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
