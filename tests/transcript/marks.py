"""Comparison of `unspecified` of a recipe with the report.

The values that it lists, by path or by the path of their table, are those that the report neither
states nor implies, and no others.
"""

import json
from collections.abc import Iterator
from typing import Any

from esrjax.training.recipe import Recipe, to_json
from transcript.said import implied, readings, stage_of_runs, stated

KEYS = "steps epochs data loss optimizer schedule ema init_from teacher lora prune".split()
# about our images and machines; eps is PyTorch's everywhere
EXCLUDED_KEYS = {"data.undersized", "data.crop_on", "data.cache_gib", "optimizer.eps"}
USED_BY = {  # key -> names of the schedules or optimizers that use it; its default says nothing
    "schedule.gamma": ("multistep", "step"),
    "optimizer.momentum": ("muadamw",),
}
FIELDS = {  # key -> fields of the transcript, any of which states it
    "steps": {"steps"},
    "epochs": {"epochs"},
    "data.datasets": {"data"},
    "data.hr_patch_sizes": {"hr_patch_size", "lr_patch_size", "patch_size"},
    "data.batch_size": {"batch_size", "batch_size_per_gpu"},
    "data.augment": {"augmentation"},
    "optimizer.name": {"optimizer"},
    "optimizer.b1": {"betas"},
    "optimizer.b2": {"betas"},
    "optimizer.weight_decay": {"weight_decay"},
    "optimizer.muon_learning_rate": {"muon_learning_rate"},
    "optimizer.momentum": {"momentum"},
    "ema": {"ema"},
    "init_from": {"init_from"},
    "teacher.stage": {"teacher"},
    "teacher.method": {"teacher"},
    "teacher.checkpoint": {"teacher"},
    "teacher.taps": {"tapped_blocks"},
}
SCHEDULE_FIELDS = {  # key -> entries of the field `learning_rate`, any of which states it
    "optimizer.learning_rate": {"from"},
    "schedule.name": {"cosine", "halved_at", "halved_every", "lowered_at"},
    "schedule.end_learning_rate": {"to"},
    "schedule.restarts": {"period", "restarts"},
    "schedule.restart_weights": {"restarts"},
    "schedule.milestones": {"halved_at", "lowered_at"},
    "schedule.step_size": {"halved_every"},
    "schedule.gamma": {"halved_at", "halved_every"},
}


def unmarked(name: str, recipe: Recipe) -> list[str]:
    """Return the values that the report leaves open and that `unspecified` does not list."""
    return [
        f"{stage['name']}: {key}"
        for stage, known in stages_with_known_keys(name, recipe)
        for key, is_known in known.items()
        if not is_known and not any(contains(path, key) for path in stage["unspecified"])
    ]


def wrongly_marked(name: str, recipe: Recipe) -> list[str]:
    """Return the entries of `unspecified` with a value that the report states or implies."""
    return [
        f"{stage['name']}: {path}"
        for stage, known in stages_with_known_keys(name, recipe)
        for path in stage["unspecified"]
        if any(known[key] and (contains(path, key) or contains(key, path)) for key in known)
    ]


def contains(path: str, key: str) -> bool:
    return f"{key}.".startswith(f"{path}.")


def stages_with_known_keys(
    name: str, recipe: Recipe
) -> Iterator[tuple[dict[str, Any], dict[str, bool]]]:
    """Yield every stage with key -> whether the report states or implies it, in its first run."""
    run = 0
    for index, stage in enumerate(json.loads(to_json(recipe))["stage"]):
        entry = stage_of_runs(name)[run]
        values = {**implied(name)[entry], **stated(name)[entry]}
        yield (
            stage,
            {
                key: is_stated(values, key, value)
                or (index, key, value) == (0, "init_from", "scratch")
                for key, value in leaves(stage)
            },
        )
        run += stage["repeat"]


def leaves(stage: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of all compared keys, such as `optimizer.learning_rate`."""
    for name in KEYS:
        value = stage[name]
        table = value if isinstance(value, dict) and name != "init_from" else {"": value}
        for key, leaf in table.items():
            path = f"{name}.{key}".rstrip(".")
            is_used = path not in USED_BY or value["name"] in USED_BY[path]
            if leaf and is_used and path not in EXCLUDED_KEYS:
                yield path, leaf


def is_stated(values: dict[str, Any], key: str, value: Any) -> bool:
    """Return whether the report states or implies the value of a key."""
    if key in SCHEDULE_FIELDS:
        rate = values.get("learning_rate", {})
        return bool(SCHEDULE_FIELDS[key] & (set(rate) if isinstance(rate, dict) else {"from"}))
    if key.startswith("loss."):  # without weights one term has 1, since only ratios matter
        loss = readings("loss", values.get("loss", ()))[0]
        return bool(loss) and (isinstance(loss, dict) or len(loss) == 1 or value == 1)
    if key == "data.hr_patch_sizes" and isinstance(values.get("hr_patch_size"), dict):
        return False  # the report gives only their number and range
    return bool(FIELDS.get(key, set()) & set(values))
