"""Sets that a contest forbids are named, others are not."""

from dataclasses import replace

import pytest

from esrjax.contest import rules
from esrjax.contest.fairness import fairness

RULES = rules.load("ntire2026")


@pytest.mark.parametrize(
    ("name", "told"),
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
def test_what_may_be_trained_on(name, told):
    found = fairness(RULES, [name])
    assert len(found) == (told is not None)
    assert all(line.startswith(f"{name}: ") and f"DIV2K's {told} " in line for line in found)


def test_every_breach_is_told_once_in_order():
    names = ["test", "DIV2K", "DIV2K_valid", "test"]
    assert [line.partition(":")[0] for line in fairness(RULES, names)] == ["test", "DIV2K_valid"]


def test_a_contest_may_allow_its_own_sets_alone():
    assert RULES.fairness
    strict = replace(RULES, fairness=replace(RULES.fairness, extra=False))
    assert fairness(strict, ["/data/div2k", "Flickr2K"]) == []
    (told,) = fairness(strict, ["T91"])
    assert told == f"T91: {RULES.name} allows DIV2K, LSDIR, Flickr2K alone"


def test_rules_that_say_nothing_forbid_nothing():
    assert fairness(replace(RULES, fairness=None), ["DIV2K_valid"]) == []
