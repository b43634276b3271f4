"""What the report says of each training."""

import tomllib
from pathlib import Path
from typing import Any

WRITTEN = tomllib.loads((Path(__file__).parents[1] / "report_recipes.toml").read_text())
# name of a config -> what the report says of that training
REPORT = {name: said for method, said in WRITTEN.items() for name in said.get("configs", [method])}


def printed(method: str) -> list[dict[str, Any]]:
    """Field -> what is said of it, for every stage."""
    throughout = REPORT[method].get("throughout", {})
    stages = [{**throughout, **stage} for stage in REPORT[method]["stage"]]
    return [{field: stage[field] for field in stage if field != "implied"} for stage in stages]


def implied(method: str) -> list[dict[str, Any]]:
    """Field -> what is hardly left open."""
    return [stage.get("implied", {}) for stage in REPORT[method]["stage"]]


def readings(field: str, said: Any) -> list[Any]:
    """What may be meant: one thing, or several where the report is ambiguous."""
    if field == "patch":
        return [said, 4 * said]  # of HR, or of LR
    return said["any"] if isinstance(said, dict) and "any" in said else [said]


def turns(method: str) -> list[int]:
    """Index of the stage for every run in order."""
    times = [stage.get("times", 1) for stage in printed(method)]
    once = [index for index, count in enumerate(times) for _ in range(count)]
    return once * REPORT[method].get("rounds", 1)
