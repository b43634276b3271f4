"""The rules are data, and a file that says them wrongly is told everything at once."""

from importlib import resources
from pathlib import Path

import pytest

from esrjax.contest import rules
from esrjax.pictures import specs

TEXT = (resources.files("esrjax_configs") / "ntire2026.toml").read_text("utf-8")


def changed(folder: Path, *changes: tuple[str, str]) -> Path:
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "mine.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_shipped_rules_are_those_of_the_report():
    ntire = rules.load("ntire2026")
    assert (ntire.floors.valid, ntire.floors.test, ntire.floors.decimals) == (26.90, 26.99, 2)
    assert (ntire.baseline.runtime_ms, ntire.baseline.params_m) == (7.650, 0.151)
    assert (ntire.baseline.flops_g, ntire.score.factor) == (9.83, 2.0)
    assert ntire.score.weights == rules.Weights(runtime=0.8, flops=0.1, params=0.1)
    assert ntire.waiver("IN2GM") and ntire.waiver("MDAP") is None
    assert (len(ntire.teams), ntire.teams["22"]) == (16, "XiaomiMM")


def test_the_floors_speak_of_a_metric_that_exists():
    assert rules.load("ntire2026").floors.spec in specs.SPECS


def test_a_run_of_pictures_is_named_in_full():
    pictures = rules.load("ntire2026").pictures("valid")
    assert (len(pictures), pictures[0], pictures[99], pictures[100], pictures[-1]) == (
        200,
        "0000001",
        "0000100",
        "0801",
        "0900",
    )
    assert rules.load("ntire2026").pictures("Set5") == ()


def test_warm_up_is_by_team():
    ntire = rules.load("ntire2026")
    assert [ntire.warm_up(team) for team in ("DISP", "PKDSR", "XiaomiMM")] == [20, 16, 0]
    assert ntire.program and set(ntire.program.warm_up) <= set(ntire.teams.values())


def test_a_path_is_read_like_a_name(tmp_path: Path):
    assert rules.load(changed(tmp_path)) == rules.load("ntire2026")


def test_every_field_says_where_it_comes_from():
    sources = ("report", "program", "recomputed")
    assert all(any(source in table for source in sources) for table in TEXT.split("\n\n"))


def test_all_mistakes_are_told_at_once(tmp_path: Path):
    path = changed(
        tmp_path,
        ("valid = 26.90", 'valid = "26.90"'),
        ("runtime = 0.8", "runtimes = 0.8"),
        ("flops_g = 9.83", "flops_g = -9.83"),
        ("pictures = 200", "pictures = 200.5"),
    )
    with pytest.raises(rules.RulesError) as error:
        rules.load(path)
    assert str(error.value).splitlines()[:6] == [
        "the rules have 5 mistakes:",
        "    floors.valid should be a valid number, found '26.90'",
        "    floors.pictures should be a valid integer, found 200.5",
        "    score.weights.runtime is missing",
        "    score.weights.runtimes is not a known name",
        "    baseline.flops_g should be greater than 0, found -9.83",
    ]
    assert "place:  mine.toml" in str(error.value)


def test_a_rule_that_nobody_wrote_is_refused(tmp_path: Path):
    with pytest.raises(rules.RulesError, match="ties should be 'shared, next skipped'"):
        rules.load(changed(tmp_path, ("shared, next skipped", "dense")))


def test_what_is_not_toml_says_where(tmp_path: Path):
    with pytest.raises(rules.RulesError, match=r"is not TOML: .*line 1"):
        rules.load(changed(tmp_path, ("# The rules", "The rules")))


def test_an_unknown_name_says_what_is_known():
    with pytest.raises(rules.UnknownRules, match=r"no rules called 'ntire1999'[^$]*ntire2026"):
        rules.load("ntire1999")
