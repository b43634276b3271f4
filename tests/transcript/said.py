"""Transcription of the trainings in the challenge report."""

import tomllib
from pathlib import Path
from typing import Any

TRANSCRIPT = tomllib.loads((Path(__file__).parents[1] / "report_recipes.toml").read_text())
# name of a recipe -> the training in the report
REPORT = {
    recipe: training
    for method, training in TRANSCRIPT.items()
    for recipe in training.get("recipes", [method])
}


def stated(method: str) -> list[dict[str, Any]]:
    """Return field -> value in the report, for every stage."""
    all_stages = REPORT[method].get("all_stages", {})
    stages = [{**all_stages, **stage} for stage in REPORT[method]["stage"]]
    return [{field: stage[field] for field in stage if field != "implied"} for stage in stages]


def implied(method: str) -> list[dict[str, Any]]:
    """Return field -> value that the report implies, for every stage."""
    return [stage.get("implied", {}) for stage in REPORT[method]["stage"]]


def readings(field: str, value: Any) -> list[Any]:
    """Return the possible meanings of a value: several if the report is ambiguous."""
    if field == "patch_size":
        return [value, 4 * value]  # of HR, or of LR
    return value["any"] if isinstance(value, dict) and "any" in value else [value]


def stage_of_runs(method: str) -> list[int]:
    """Return the index of the stage of every run, in order."""
    times = [stage.get("times", 1) for stage in stated(method)]
    once = [index for index, count in enumerate(times) for _ in range(count)]
    return once * REPORT[method].get("repeats", 1)
