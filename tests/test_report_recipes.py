"""Shipped recipes have the values of the report, and mark those that it leaves open."""

import importlib.util
from collections.abc import Iterator
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from transcript.marks import contains, stage_settings, unmarked, wrongly_marked
from transcript.pairs import PAIRS
from transcript.report import (
    REPORT,
    implied,
    notes,
    readings,
    report_runs,
    stage_of_runs,
    stated,
)

from esrjax.training.recipe import Recipe, StageRun
from esrjax.training.recipe_loader import find_recipe_file, load

DEVIATIONS = {("smt_hat", "loss_scales"): "the released HAT has heads for x2 and x1, none for x3"}

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(REPORT)


@cache
def recipe(method: str) -> Recipe:
    return load(method)


def first_index(method: str, run: StageRun) -> int:
    """Return the index of the first run of the same stage."""
    return [other.stage.name for other in recipe(method).runs].index(run.stage.name)


def statements() -> Iterator[Any]:
    for method in RECIPES:
        stages = zip(implied(method), stated(method), strict=True)
        for index, (implied_fields, fields) in enumerate(stages):
            for field, value in sorted({**implied_fields, **fields}.items(), key=itemgetter(0)):
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
    assert len(report_runs(recipe(method))) == len(stage_of_runs(method))


@pytest.mark.parametrize(("method", "index", "field", "value"), [*statements()])
def test_recipe_has_the_values_of_the_report(method, index, field, value):
    stages = stage_of_runs(method)
    runs = zip(report_runs(recipe(method)), stages, strict=True)
    for run in [run for run, stage in runs if stage == index]:
        if field == "init_from" and run.index != first_index(method, run):
            continue  # a repetition starts from the run before
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
        ("dscf", "stage.1.loss.fft=0.1", "loss"),
        ("dscf", "defaults.lora.train=['block_*.bias']", "lora_train"),
        ("dwmamba", "stage.0.hparams.depth=2", "hparams"),
        ("errn2", "stage.0.schedule.restarts=[500_000]", "learning_rate"),
        ("haesr", "stage.0.schedule.milestones=[250_000, 400_000]", "learning_rate"),
        ("pds", "stage.0.init_from=other.pth", "init_from"),
        ("rfdn_span", "stage.0.schedule.step_size=100_000", "learning_rate"),
        ("smt_hat", "stage.0.init_from.checkpoint=x.pth", "init_from"),
        ("smt_mambairv2", "defaults.heads={head_2x=0.5}", "loss_scales"),
        ("safmn_deep15", "stage.0.data.hr_patch_sizes=[[64, 64]]", "lr_patch_size"),
        ("zenosr", "stage.0.steps=400_000", "steps"),
    ],
)
def test_changed_value_is_detected(method, override, field):
    changed = load(method, [override])
    value = {**implied(method)[0], **stated(method)[0]}[field]
    run, changed_run = report_runs(recipe(method))[0], report_runs(changed)[0]
    assert disagreement(value, field, run, recipe(method)) is None
    assert f"{changed_run.name}, {field}" in str(disagreement(value, field, changed_run, changed))


@pytest.mark.parametrize(
    ("method", "path", "key"),
    [
        ("disp", "optimizer.name", "optimizer.name"),
        ("dscf", "lora.rank", "lora.rank"),
        ("pds", "form", "form"),
        ("pds", "freeze", "freeze"),
        ("pds", "reinit", "reinit"),
        ("pds", "steps", "steps"),
        ("rfdn_span", "ema", "ema"),
        ("smt_hat", "heads", "heads.head_1x"),
        ("smt_hat", "reinit", "reinit"),
        ("spanv2", "data.hr_patch_sizes", "data.hr_patch_sizes"),
        ("zenosr", "schedule.gamma", "schedule.gamma"),
    ],
)
def test_missing_mark_is_detected(method, path, key):
    index = first_stage(method)
    paths = [other for other in recipe(method).stage[index].unspecified if other != path]
    changed = load(method, [f"stage.{index}.unspecified={paths}"])
    assert f"{changed.stage[index].name}: {key}" in unmarked(method, changed)


def first_stage(method: str) -> int:
    """Return the index of the first stage that is of the report."""
    return [stage.ours for stage in recipe(method).stage].index(False)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("amcanet", "loss"),
        ("disp", "schedule"),
        ("dscf", "teacher.taps.block_1"),
        ("dscf", "lora.train"),  # implied
        ("errn2", "data"),
        ("haesr", "optimizer.b1"),
        ("pds", "init_from"),
        ("smt_hat", "init_from"),
        ("spanv2", "steps"),
    ],
)
def test_wrong_mark_is_detected(method, path):
    index = first_stage(method)
    paths = [*recipe(method).stage[index].unspecified, path]
    changed = load(method, [f"stage.{index}.unspecified={paths}"])
    assert wrongly_marked(method, changed) == [f"{changed.stage[index].name}: {path}"]


def test_second_stage_of_spanv2_says_which_weights_of_the_first_it_starts_from():
    changed = load("spanv2", ["stage.1.unspecified=[]"])
    assert unmarked("spanv2", changed) == ["fine-tuning: init_from.weights"]


def test_page_of_all_settings_is_current():
    spec = importlib.util.spec_from_file_location("recipes", ROOT / "tools/recipes.py")
    assert spec and spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    assert generator.PAGE == ROOT / "docs/recipes.md"
    assert generator.page() == generator.PAGE.read_text(), "run `make recipes`"


@pytest.mark.parametrize("method", RECIPES)
def test_header_has_the_hardware_of_the_report(method):
    text = find_recipe_file(method).read_text()
    assert f"# Hardware: {REPORT[method].get('hardware', 'unspecified')}" in text


@pytest.mark.parametrize("method", RECIPES)
def test_notes_of_the_transcript_are_about_settings(method):
    """A note on a key that no stage has would never be shown."""
    paths = {path for notes_of_stage in notes(method) for path in notes_of_stage}
    keys = {s.key for _, settings in stage_settings(method, recipe(method)) for s in settings}
    assert [path for path in paths if not any(contains(path, key) for key in keys)] == []
