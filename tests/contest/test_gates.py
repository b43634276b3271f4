"""Floors are asked of what the contest rounds, and what rounding lends is told."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esrjax.contest import rules
from esrjax.contest.factsheet import gate_words
from esrjax.contest.gates import gates

RULES = rules.load("ntire2026")


def valid(psnr: float, pictures: int = 200, team: str = "Ours"):
    (gate,) = gates({"valid": (psnr, pictures)}, RULES, team)
    return gate


@pytest.mark.parametrize(
    ("psnr", "rounded", "unrounded", "verdict"),
    [
        (26.9187, 20, 18.7, "passes"),
        (26.90, 0, 0, "passes"),
        (26.8964, 0, -3.6, "passes by rounding alone"),
        (26.8949, -10, -5.1, "misses"),
    ],
)
def test_a_margin_before_and_after_rounding(psnr, rounded, unrounded, verdict):
    gate = valid(psnr)
    assert (gate.rounded_mdb, gate.verdict) == (rounded, verdict)
    assert gate.unrounded_mdb == pytest.approx(unrounded, abs=1e-6)
    words = f"floor 26.90: {rounded:+.0f} mdB as rounded, {unrounded:+.1f} mdB unrounded; {verdict}"
    assert gate_words(gate) == words


@given(st.floats(26, 28))
def test_rounding_moves_a_margin_by_half_a_step_at_most(psnr):
    gate = valid(psnr)
    assert abs(gate.rounded_mdb - gate.unrounded_mdb) <= 5 + 1e-6
    assert (gate.verdict == "misses") == (round(psnr, 2) < 26.9)


def test_a_floor_does_not_speak_of_another_set_nor_against_a_waiver():
    assert valid(20.0, pictures=5).verdict == "not judged"
    assert gate_words(valid(20.0, 5)).endswith("not judged: 5 pictures, the floor speaks of 200")
    assert valid(20.0, team="IN2GM").verdict == "waived"
    assert "ranked 7th by the organisers" in gate_words(valid(20.0, team="IN2GM"))


def test_of_the_official_results_five_pass_by_rounding_alone(reference):
    held = json.loads((reference / "protocol/results.json").read_text())
    said: dict[str, set[str]] = {}
    for key, entry in held.items():
        team = RULES.teams[key.strip().split("_")[0].lstrip("0").zfill(2)]
        means = {split: (entry[f"{split}_ave_psnr"], 200) for split in ("valid", "test")}
        for gate in gates(means, RULES, team):
            said.setdefault(gate.verdict, set()).add(team)
    lent = {"BOE AIoT", "XSR", "ZenoSR", "XuptSR", "VARH-AI"}
    assert said["passes by rounding alone"] == lent
    assert (said["misses"], said["waived"]) == ({"MDAP"}, {"IN2GM"})
