"""The shipped recipes say what the report says, and mark what it leaves to us."""

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import pytest
from transcript.marks import unmarked
from transcript.pairs import PAIRS
from transcript.said import REPORT, implied, printed, readings, turns

from esrjax.training.recipe import Recipe, Run, load

DEPARTURES = {("dscf", "teacher_width"): "no EMSR of 30 channels is public, one of 26 is"}

WITH_CONFIG = sorted(REPORT)
CONFIGS = resources.files("esrjax_configs")


@cache
def recipe(method: str) -> Recipe:
    return load(method)


def statements() -> Iterator[Any]:
    for method in WITH_CONFIG:
        stages = zip(implied(method), printed(method), strict=True)
        for index, (less, more) in enumerate(stages):
            for field, said in {**less, **more}.items():
                yield pytest.param(method, index, field, said, id=f"{method}-{index + 1}-{field}")


def disagreement(said: Any, field: str, run: Run, recipe: Recipe) -> str | None:
    """None where the recipe says what one reading of the report says."""
    pairs = [PAIRS[field](each, run, recipe) for each in readings(field, said)]
    if any(same(*pair) for pair in pairs):
        return None
    words = " or ".join(str(report) for report, _ in pairs)
    return f"{recipe.method}, {run.name}, {field}: the report {words}, the config {pairs[0][1]}"


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
        found = disagreement(said, field, run, recipe(method))
        if (method, field) in DEPARTURES:
            assert found, f"{method}, {field}: no departure any more"
        else:
            assert not found, found


@pytest.mark.parametrize("method", WITH_CONFIG)
def test_a_config_marks_what_the_report_leaves_unsaid(method):
    assert unmarked(method, (CONFIGS / f"{method}.toml").read_text()) == []


@pytest.mark.parametrize(
    ("method", "change", "field"),
    [
        ("amcanet", "stage.0.data.sets=['DIV2K', 'LSDIR']", "data"),
        ("amcanet", "stage.0.schedule.end_lr=1e-6", "rate"),
        ("dscf", "stage.0.loss.fft=0.1", "loss"),
        ("dwmamba", "stage.0.network.blocks=2", "network"),
        ("errn2", "stage.0.schedule.restarts=[500_000]", "rate"),
        ("haesr", "stage.0.schedule.milestones=[250_000, 400_000]", "rate"),
        ("pds", "stage.0.start=new", "start"),
        ("rfdn_span", "stage.0.schedule.every=100_000", "rate"),
        ("safmn_deep15", "stage.0.data.patches=[[64, 64]]", "lr_patch"),
        ("zenosr", "stage.0.steps=400_000", "iterations"),
    ],
)
def test_another_number_is_noticed(method, change, field):
    changed = load(method, [change])
    said = printed(method)[0][field]
    assert disagreement(said, field, recipe(method).runs[0], recipe(method)) is None
    assert f"{changed.runs[0].name}, {field}" in str(
        disagreement(said, field, changed.runs[0], changed)
    )


@pytest.mark.parametrize("method", ["disp", "pds", "rfdn_span", "spanv2", "zenosr"])
def test_a_missing_mark_is_noticed(method):
    text = (CONFIGS / f"{method}.toml").read_text()
    assert unmarked(method, re.sub("unsaid|implied", "ours", text))
