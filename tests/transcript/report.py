"""Transcription of the trainings in the challenge report."""

import tomllib
from pathlib import Path
from typing import Any

from esrjax.training.recipe import Recipe, StageRun

TRANSCRIPT = tomllib.loads((Path(__file__).parents[1] / "report_recipes.toml").read_text())
# name of a recipe -> the training in the report
REPORT = {
    recipe: training
    for method, training in TRANSCRIPT.items()
    for recipe in training.get("recipes", [method])
}
ASIDE = {"implied", "notes", "open"}  # tables of a stage that are no statements


def stated(method: str) -> list[dict[str, Any]]:
    """Return field -> value in the report, for every stage."""
    all_stages = REPORT[method].get("all_stages", {})
    stages = [{**all_stages, **stage} for stage in REPORT[method]["stage"]]
    return [{field: of(method, stage[field]) for field in stage.keys() - ASIDE} for stage in stages]


def of(method: str, value: Any) -> Any:
    """Return the value of one recipe, where several follow the same training."""
    return value["of"][method] if isinstance(value, dict) and "of" in value else value


def implied(method: str) -> list[dict[str, Any]]:
    """Return field -> value that the report implies, for every stage."""
    return _tables(method, "implied")


def notes(method: str) -> list[dict[str, str]]:
    """Return key of the recipe -> what the report leaves open of its value, for every stage."""
    return _tables(method, "notes")


def _tables(method: str, name: str) -> list[dict[str, Any]]:
    shared = REPORT[method].get("all_stages", {}).get(name, {})
    return [{**shared, **stage.get(name, {})} for stage in REPORT[method]["stage"]]


def left_open(method: str) -> list[list[str]]:
    """Return the keys that a statement does not determine, for every stage."""
    return [stage.get("open", []) for stage in REPORT[method]["stage"]]


def readings(field: str, value: Any) -> list[Any]:
    """Return the possible meanings of a value: several if the report is ambiguous."""
    if field == "patch_size":
        return [value, 4 * value]  # of HR, or of LR
    return value["any"] if isinstance(value, dict) and "any" in value else [value]


def stage_of_runs(method: str) -> list[int]:
    """Return the index of the report's stage of every run of `report_runs`, in order."""
    times = [stage.get("times", 1) for stage in stated(method)]
    once = [index for index, count in enumerate(times) for _ in range(count)]
    return once * REPORT[method].get("repeats", 1)


def report_runs(recipe: Recipe) -> list[StageRun]:
    """Return the runs of the stages that are of the report, not ours."""
    return [run for run in recipe.runs if not run.stage.ours]
