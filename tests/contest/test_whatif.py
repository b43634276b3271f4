"""What-if changes of figures, and errors for malformed or impossible ones."""

from dataclasses import replace

import pytest
from fields import RULES, SPAN, make_row

from esrjax.contest.rank import rank
from esrjax.contest.whatif import InvalidChange, apply_changes, parse_changes, what_if_scenario

ROWS = [SPAN, make_row("Fast", runtime_ms=4.0), make_row("Slow", runtime_ms=12.0)]


def rows_after(*texts: str):
    return {row.team: row for row in apply_changes(ROWS, parse_changes(texts), RULES)}


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
    rows = [replace(row, baseline_ms=8.0) for row in ROWS]
    changed = apply_changes(rows, parse_changes(["SPAN:runtime=+1"]), RULES)
    assert [row.baseline_ms for row in changed] == [9.0] * 3
    (baseline,) = rank(changed, RULES).with_status("baseline")
    assert baseline.log_scores["runtime"] == pytest.approx(2.0)


def test_scenario_lists_the_rank_changes():
    before = rank(ROWS, RULES)
    changes = parse_changes(["Slow:runtime=-9"])
    scenario = what_if_scenario(changes, before, rank(apply_changes(ROWS, changes, RULES), RULES))
    assert scenario.name == "What if Slow runtime -9 ms"
    main = {(c.team, c.before, c.after) for c in scenario.rank_changes if c.track == "main"}
    assert main == {("Slow", 2, 1), ("Fast", 1, 2)}


@pytest.mark.parametrize(
    "text", ["Fast", "Fast:runtime", "Fast:speed=1", "Fast:runtime=x", ":psnr=1"]
)
def test_malformed_changes_are_all_reported(text):
    with pytest.raises(InvalidChange) as error:
        parse_changes(["Fast:runtime=1", text, "Fast:colour=2"])
    assert repr(text) in str(error.value) and "'Fast:colour=2'" in str(error.value)
    assert "'Fast:runtime=1'" not in str(error.value)


def test_unknown_or_ambiguous_methods_are_rejected():
    with pytest.raises(InvalidChange, match="did you mean 'slow'"):
        rows_after("slov:runtime=1")
    with pytest.raises(InvalidChange, match="'fast'"):
        apply_changes([*ROWS, ROWS[1]], parse_changes(["fast:runtime=1"]), RULES)


@pytest.mark.parametrize("text", ["Fast:runtime=-4", "Fast:params=-1", "Fast:psnr=0"])
def test_impossible_figures_are_rejected(text):
    with pytest.raises(InvalidChange, match=r"'Fast .* (M|ms|dB)'"):
        rows_after(text)


def test_unknown_figures_can_be_set_but_not_changed_by_a_difference():
    unknown = replace(ROWS[1], psnr_test=None)
    with pytest.raises(InvalidChange, match="psnr_test is unknown"):
        apply_changes([SPAN, unknown], parse_changes(["Fast:psnr_test=+0.1"]), RULES)
    (_, row) = apply_changes([SPAN, unknown], parse_changes(["Fast:psnr_test=27"]), RULES)
    assert row.psnr_test == 27.0
