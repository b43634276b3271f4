"""Shipped recipes have the values of the report, and mark those that it leaves open."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from transcript.marks import unmarked, wrongly_marked
from transcript.pairs import PAIRS
from transcript.said import REPORT, implied, readings, stage_of_runs, stated

from esrjax.training.recipe import Recipe, StageRun
from esrjax.training.recipe_loader import load

DEVIATIONS = {("dscf", "teacher_channels"): "only an EMSR of 26 channels is public, not of 30"}

RECIPES = sorted(REPORT)


@cache
def recipe(method: str) -> Recipe:
    return load(method)


def statements() -> Iterator[Any]:
    for method in RECIPES:
        stages = zip(implied(method), stated(method), strict=True)
        for index, (implied_fields, fields) in enumerate(stages):
            for field, value in {**implied_fields, **fields}.items():
                yield pytest.param(method, index, field, value, id=f"{method}-{index + 1}-{field}")


def disagreement(value: Any, field: str, run: StageRun, recipe: Recipe) -> str | None:
    """Return how the recipe differs from all readings of the report, None if it does not."""
    pairs = [PAIRS[field](reading, run, recipe) for reading in readings(field, value)]
    if any(is_equal(*pair) for pair in pairs):
        return None
    expected = " or ".join(str(report) for report, _ in pairs)
    return f"{recipe.method}, {run.name}, {field}: {expected} in the report, here {pairs[0][1]}"


def is_equal(report: Any, config: Any) -> bool:
    is_numeric = isinstance(report, float | list | dict)
    return config == (pytest.approx(report, rel=1e-9) if is_numeric else report)


@pytest.mark.parametrize("method", RECIPES)
def test_recipe_has_the_stages_of_the_report(method):
    assert len(recipe(method).runs) == len(stage_of_runs(method))


@pytest.mark.parametrize(("method", "index", "field", "value"), [*statements()])
def test_recipe_has_the_values_of_the_report(method, index, field, value):
    stages = stage_of_runs(method)
    for run in [recipe(method).runs[i] for i, stage in enumerate(stages) if stage == index]:
        difference = disagreement(value, field, run, recipe(method))
        if (method, field) in DEVIATIONS:
            assert difference, f"{method}, {field}: no longer a deviation"
        else:
            assert not difference, difference


@pytest.mark.parametrize("method", RECIPES)
def test_unspecified_lists_what_the_report_leaves_open_and_no_more(method):
    assert unmarked(method, recipe(method)) == []
    assert wrongly_marked(method, recipe(method)) == []


@pytest.mark.parametrize(
    ("method", "override", "field"),
    [
        ("amcanet", "stage.0.data.datasets=['DIV2K', 'LSDIR']", "data"),
        ("amcanet", "stage.0.schedule.end_learning_rate=1e-6", "learning_rate"),
        ("dscf", "stage.0.loss.fft=0.1", "loss"),
        ("dwmamba", "stage.0.hparams.depth=2", "hparams"),
        ("errn2", "stage.0.schedule.restarts=[500_000]", "learning_rate"),
        ("haesr", "stage.0.schedule.milestones=[250_000, 400_000]", "learning_rate"),
        ("pds", "stage.0.init_from=other.pth", "init_from"),
        ("rfdn_span", "stage.0.schedule.step_size=100_000", "learning_rate"),
        ("safmn_deep15", "stage.0.data.hr_patch_sizes=[[64, 64]]", "lr_patch_size"),
        ("zenosr", "stage.0.steps=400_000", "steps"),
    ],
)
def test_changed_value_is_detected(method, override, field):
    changed = load(method, [override])
    value = stated(method)[0][field]
    assert disagreement(value, field, recipe(method).runs[0], recipe(method)) is None
    assert f"{changed.runs[0].name}, {field}" in str(
        disagreement(value, field, changed.runs[0], changed)
    )


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        ("disp", "optimizer.name", "optimizer.name"),
        ("dscf", "lora", "lora.rank"),
        ("pds", "steps", "steps"),
        ("rfdn_span", "ema", "ema"),
        ("smt_hat", "init_from", "init_from"),
        ("spanv2", "data.hr_patch_sizes", "data.hr_patch_sizes"),
        ("zenosr", "schedule.gamma", "schedule.gamma"),
    ],
)
def test_missing_mark_is_detected(method, path, key):
    paths = [other for other in recipe(method).stage[0].unspecified if other != path]
    changed = load(method, [f"stage.0.unspecified={paths}"])
    assert f"{changed.stage[0].name}: {key}" in unmarked(method, changed)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("amcanet", "loss"),
        ("disp", "schedule"),
        ("dscf", "teacher.taps.block_1"),
        ("errn2", "data"),
        ("haesr", "optimizer.b1"),
        ("pds", "teacher"),  # implied
        ("spanv2", "steps"),
    ],
)
def test_wrong_mark_is_detected(method, path):
    paths = [*recipe(method).stage[0].unspecified, path]
    changed = load(method, [f"stage.0.unspecified={paths}"])
    assert wrongly_marked(method, changed) == [f"{changed.stage[0].name}: {path}"]
