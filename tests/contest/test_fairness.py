"""Data policy: forbidden datasets are reported, others are not."""

from dataclasses import replace

import pytest

from esrjax.contest import rules
from esrjax.contest.fairness import data_policy_violations

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
        ("test", "test"),
    ],
)
def test_forbidden_datasets(name, forbidden_split):
    violations = data_policy_violations(RULES, [name])
    assert len(violations) == (forbidden_split is not None)
    for violation in violations:
        assert violation.startswith(f"{name}: ") and f"DIV2K's {forbidden_split} " in violation


def test_each_violation_is_reported_once_in_order():
    violations = data_policy_violations(RULES, ["test", "DIV2K", "DIV2K_valid", "test"])
    assert [violation.partition(":")[0] for violation in violations] == ["test", "DIV2K_valid"]


def test_policy_without_extra_data_allows_only_challenge_datasets():
    assert RULES.data_policy
    strict = replace(RULES, data_policy=replace(RULES.data_policy, extra_data_allowed=False))
    assert data_policy_violations(strict, ["/data/div2k", "Flickr2K"]) == []
    (violation,) = data_policy_violations(strict, ["T91"])
    assert violation == f"T91: {RULES.name} allows DIV2K, LSDIR, Flickr2K only"


def test_rules_without_data_policy_allow_everything():
    assert data_policy_violations(replace(RULES, data_policy=None), ["DIV2K_valid"]) == []
