"""Figures can be changed on the way into a ranking, and what says nothing is refused."""

from dataclasses import replace

import pytest
from fields import RULES, SPAN, other

from esrjax.contest.rank import rank
from esrjax.contest.whatif import BadChange, changed, parse, scenario

ROWS = [SPAN, other("Fast", runtime_ms=4.0), other("Slow", runtime_ms=12.0)]


def after(*texts: str):
    return {row.team: row for row in changed(ROWS, parse(texts), RULES)}


def test_a_sign_adds_and_no_sign_replaces():
    found = after("fast:runtime=-0.5", "SLOW:flops=2", "slow:params=+1e-3", "Fast:psnr=-0.04")
    assert found["Fast"].runtime_ms == 3.5
    assert found["Slow"].flops_g == 2.0
    assert found["Slow"].params_m == pytest.approx(0.151)
    assert found["Fast"].psnr_valid == pytest.approx(26.90)
    assert found["Fast"].psnr_test == pytest.approx(26.97)
    assert found["EfficientSR Organizers"] == SPAN


def test_changes_of_one_method_add_up():
    assert after("Fast:runtime=2", "Fast:runtime=+1")["Fast"].runtime_ms == 3.0


def test_the_baseline_changes_wherever_it_was_timed():
    rows = [replace(row, baseline_ms=8.0) for row in ROWS]
    found = changed(rows, parse(["SPAN:runtime=+1"]), RULES)
    assert [row.baseline_ms for row in found] == [9.0] * 3
    assert rank(found, RULES).of("baseline")[0].logs["runtime"] == pytest.approx(2.0)


def test_what_it_did_is_told():
    before = rank(ROWS, RULES)
    changes = parse(["Slow:runtime=-9"])
    told = scenario(changes, before, rank(changed(ROWS, changes, RULES), RULES))
    assert told.name == "What if Slow runtime -9 ms"
    assert {(m.team, m.before, m.after) for m in told.moves if m.track == "main"} == {
        ("Slow", 2, 1),
        ("Fast", 1, 2),
    }


@pytest.mark.parametrize(
    "text", ["Fast", "Fast:runtime", "Fast:speed=1", "Fast:runtime=x", ":psnr=1"]
)
def test_a_change_that_says_nothing(text):
    with pytest.raises(BadChange, match="a change says nothing") as error:
        parse(["Fast:runtime=1", text, "Fast:colour=2"])
    assert repr(text) in str(error.value) and "'Fast:colour=2'" in str(error.value)


def test_a_change_of_nobody():
    with pytest.raises(BadChange, match="did you mean 'slow'"):
        after("slov:runtime=1")
    with pytest.raises(BadChange, match="no one row is that of 'fast'"):
        changed([*ROWS, ROWS[1]], parse(["fast:runtime=1"]), RULES)


@pytest.mark.parametrize("text", ["Fast:runtime=-4", "Fast:params=-1", "Fast:psnr=0"])
def test_a_change_that_no_row_can_take(text):
    with pytest.raises(BadChange, match="the row cannot take 'Fast"):
        after(text)


def test_what_is_not_known_cannot_be_added_to():
    unknown = replace(ROWS[1], psnr_test=None)
    with pytest.raises(BadChange, match="psnr_test is not known"):
        changed([SPAN, unknown], parse(["Fast:psnr_test=+0.1"]), RULES)
    (_, row) = changed([SPAN, unknown], parse(["Fast:psnr_test=27"]), RULES)
    assert row.psnr_test == 27.0
