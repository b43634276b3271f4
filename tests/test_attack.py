"""A fixed-seed sample of the attack campaign of tools/attack."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from attack.__main__ import list_classes, load_cases
from attack.case import Case

SAMPLE = 12  # fast cases of each class


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=f"{n}: {c.name}")
        for n in list_classes()
        for c in load_cases(n, sample=SAMPLE)
    ],
)
def test_attack_is_survived(case: Case, tmp_path: Path) -> None:
    assert case.attack(tmp_path) is None  # not `run`: a test is skipped where PyTorch is missing
