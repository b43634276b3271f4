"""Data policy: forbidden datasets are reported, others are not."""

from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest

from esrjax.challenge import rules
from esrjax.challenge.rules import data_policy_violations
from esrjax.errors import NotFound, RulesError
from esrjax.evaluation import metrics

RULES = rules.load_rules("ntire2026")


@pytest.mark.parametrize(
    ("name", "forbidden_split"),
    [
        ("DIV2K", None),
        ("DIV2K_train_HR", None),
        ("/data/valid/Flickr2K", None),
        ("T91", None),
        ("Set5", None),
        ("DIV2K_valid_HR", "validation"),
        ("div2k_valid_lr_bicubic", "validation"),
        ("/data/DIV2K/DIV2K_valid_LR_bicubic", "validation"),
        ("/data/DIV2K/valid", "validation"),
        ("DIV2K_LSDIR_valid_LR", "validation"),
        ("DIV2K_LSDIR_test_LR", "test"),
        ("DIV2K/test", "test"),
        ("test", "test"),
        ("LSDIR/valid", None),
        ("LSDIR_test_HR", None),
    ],
)
def test_forbidden_datasets(name, forbidden_split):
    violations = data_policy_violations(RULES, [name])
    assert len(violations) == (forbidden_split is not None)
    for violation in violations:
        assert violation.startswith(f"{name}: ")
        assert f"DIV2K's {forbidden_split} images, HR or LR" in violation


def test_each_violation_is_reported_once_in_order():
    violations = data_policy_violations(RULES, ["test", "DIV2K", "DIV2K_valid", "test"])
    assert [violation.partition(":")[0] for violation in violations] == ["test", "DIV2K_valid"]


def test_policy_without_extra_data_allows_only_challenge_datasets():
    assert RULES.data_policy
    strict = replace(RULES, data_policy=replace(RULES.data_policy, extra_data_allowed=False))
    assert data_policy_violations(strict, ["/data/div2k", "LSDIR"]) == []
    (violation,) = data_policy_violations(strict, ["Flickr2K"])
    assert violation == f"Flickr2K: {RULES.name} allows DIV2K, LSDIR only"


def test_rules_without_data_policy_allow_everything():
    assert data_policy_violations(replace(RULES, data_policy=None), ["DIV2K_valid"]) == []


# --- Challenge rules: the shipped file, and errors that list every problem of a file at once ---


TEXT = (resources.files("esrjax_configs") / "ntire2026.toml").read_text("utf-8")


def edited(folder: Path, *edits: tuple[str, str]) -> Path:
    """A copy of the shipped rules with each text replaced by another."""
    text = TEXT
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "mine.toml"
    path.write_text(text, "utf-8")
    return path


def test_shipped_rules_are_those_of_the_report():
    ntire = rules.load_rules("ntire2026")
    thresholds = ntire.psnr_thresholds
    assert (thresholds.valid, thresholds.test, thresholds.decimals) == (26.90, 26.99, 2)
    assert (ntire.baseline.runtime_ms, ntire.baseline.params_m) == (7.650, 0.151)
    assert (ntire.baseline.flops_g, ntire.score.factor) == (9.83, 2.0)
    assert ntire.score.weights == rules.ScoreWeights(runtime=0.8, flops=0.1, params=0.1)
    assert ntire.waiver_reason("IN2GM") and ntire.waiver_reason("MDAP") is None
    assert (len(ntire.teams), ntire.teams["22"]) == (16, "XiaomiMM")


def test_metric_of_the_thresholds_exists():
    assert rules.load_rules("ntire2026").psnr_thresholds.spec in metrics.all_specs()


def test_name_range_is_expanded():
    names = rules.load_rules("ntire2026").image_names("valid")
    assert (len(names), names[0], names[99], names[100], names[-1]) == (
        200,
        "0000001",
        "0000100",
        "0801",
        "0900",
    )
    assert rules.load_rules("ntire2026").image_names("Set5") == ()


def test_warmup_passes_depend_on_the_team():
    ntire = rules.load_rules("ntire2026")
    assert [ntire.num_warmup_passes(team) for team in ("DISP", "PKDSR", "XiaomiMM")] == [20, 16, 0]
    assert ntire.timing and set(ntire.timing.warmup_passes) <= set(ntire.teams.values())


def test_rules_can_be_loaded_from_a_path(tmp_path: Path):
    assert rules.load_rules(edited(tmp_path)) == rules.load_rules("ntire2026")


def test_every_table_of_the_file_names_its_source():
    sources = ("report", "program", "recomputed")
    assert all(any(source in table for source in sources) for table in TEXT.split("\n\n"))


def test_all_problems_of_a_file_are_reported_at_once(tmp_path: Path):
    path = edited(
        tmp_path,
        ("valid = 26.90", 'valid = "26.90"'),
        ("runtime = 0.8", "runtimes = 0.8"),
        ("flops_g = 9.83", "flops_g = -9.83"),
        ("num_images = 200", "num_images = 200.5"),
    )
    with pytest.raises(RulesError) as error:
        rules.load_rules(path)
    problems = str(error.value).splitlines()[1:6]
    for problem, (field, value) in zip(
        problems,
        [
            ("psnr_thresholds.valid", "'26.90'"),
            ("psnr_thresholds.num_images", "200.5"),
            ("score.weights.runtime ", "missing"),
            ("score.weights.runtimes ", ""),
            ("baseline.flops_g", "-9.83"),
        ],
        strict=True,
    ):
        assert problem.strip().startswith(field) and value in problem
    assert error.value.location == "mine.toml" and error.value.remedy


def test_unknown_rule_for_ties_is_rejected(tmp_path: Path):
    with pytest.raises(RulesError, match=r"ties .*'shared, next skipped'"):
        rules.load_rules(edited(tmp_path, ("shared, next skipped", "dense")))


def test_syntax_error_names_its_line(tmp_path: Path):
    with pytest.raises(RulesError, match=r"is not TOML: .*line 1"):
        rules.load_rules(edited(tmp_path, ("# Rules of", "Rules of")))


def test_unknown_rules_name_the_shipped_ones():
    with pytest.raises(NotFound, match=r"'ntire1999'[^$]*ntire2026"):
        rules.load_rules("ntire1999")
