"""The shipped recipes say what the report says, and mark what it leaves to us."""

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import pytest
from transcript.marks import unmarked
from transcript.pairs import PAIRS
from transcript.said import REPORT, implied, printed, readings, turns

from esrjax.training.recipe import Recipe, Run, load

WITHOUT_CONFIG = {"smt": "no recipe is shipped for the ensemble of two networks"}
DEPARTURES = {("dscf", "teacher_width"): "no EMSR of 30 channels is public, one of 26 is"}

WITH_CONFIG = sorted(set(REPORT) - set(WITHOUT_CONFIG))
CONFIGS = resources.files("esrjax_configs")


@cache
def recipe(method: str) -> Recipe:
    return load(method)


def statements() -> Iterator[Any]:
    for method in WITH_CONFIG:
        for index, stage in enumerate(zip(printed(method), implied(method), strict=True)):
            for field, said in {**stage[1], **stage[0]}.items():
                yield pytest.param(method, index, field, said, id=f"{method}-{index + 1}-{field}")


def disagreement(method: str, run: Run, field: str, said: Any) -> str | None:
    """None where the config says what one reading of the report says."""
    pairs = [PAIRS[field](each, run, recipe(method)) for each in readings(field, said)]
    if any(same(*pair) for pair in pairs):
        return None
    words = " or ".join(str(report) for report, _ in pairs)
    return f"{method}, {run.name}, {field}: the report {words}, the config {pairs[0][1]}"


def same(report: Any, config: Any) -> bool:
    numbers = isinstance(report, float | list | dict)
    return config == (pytest.approx(report, rel=1e-9) if numbers else report)


@pytest.mark.parametrize("method", WITH_CONFIG)
def test_a_config_has_the_stages_of_the_report(method):
    assert len(recipe(method).runs) == len(turns(method))


@pytest.mark.parametrize(("method", "index", "field", "said"), [*statements()])
def test_a_config_says_what_the_report_says(method, index, field, said):
    runs = [recipe(method).runs[i] for i, stage in enumerate(turns(method)) if stage == index]
    for run in runs:
        found = disagreement(method, run, field, said)
        if (method, field) in DEPARTURES:
            assert found, f"{method}, {field}: no departure any more"
        else:
            assert not found, found


@pytest.mark.parametrize("method", WITH_CONFIG)
def test_a_config_marks_what_the_report_leaves_unsaid(method):
    assert unmarked(method, (CONFIGS / f"{method}.toml").read_text()) == []


@pytest.mark.parametrize("method", WITHOUT_CONFIG)
def test_what_is_without_config_has_none(method):
    assert not (CONFIGS / f"{method}.toml").is_file()
