"""What the report says of each setting of a recipe, and comparison of `unspecified` with that.

The values that `unspecified` lists, by path or by the path of their table, are those that the
report neither states nor implies, and no others.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from esrjax import registry
from esrjax.training.recipe import InitFrom, Recipe, Stage, to_json
from transcript.report import implied, left_open, notes, readings, stage_of_runs, stated

# About our images and machines, not about the training; eps is PyTorch's everywhere.
EXCLUDED_KEYS = {
    *("name", "ours", "unspecified", "save_every", "grad_accum_steps"),
    *("data.undersized", "data.crop_on", "data.cache_gib", "data.num_workers", "optimizer.eps"),
    *("teacher.hparams",),
}
# Defaults that are no setting: what a stage is without it.
DEFAULTS = {"form": "train", "select": "last", "precision": "fp32", "repeat": 1}
USED_BY = {  # key -> names of the schedules or optimizers that use it; its default says nothing
    "schedule.gamma": ("multistep", "step"),
    "optimizer.momentum": ("muadamw",),
    "optimizer.trust_coefficient": ("lars",),
}
FIELDS = {  # key -> fields of the transcript, any of which states it
    "steps": {"steps"},
    "epochs": {"epochs"},
    "repeat": {"times"},
    "hparams.channels": {"hparams"},
    "hparams.tail_channels": {"hparams"},
    "hparams.depth": {"hparams"},
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
    "lora.train": {"lora_train"},
    "teacher.stage": {"teacher"},
    "teacher.method": {"teacher"},
    "teacher.checkpoint": {"teacher"},
    "teacher.taps": {"tapped_blocks"},
}
SCHEDULE_FIELDS = {  # key -> entries of the field `learning_rate`, any of which states it
    "optimizer.learning_rate": {"from"},
    "schedule.name": {"cosine", "halved_at", "halved_every", "lowered_at", "multistep"},
    "schedule.end_learning_rate": {"to"},
    "schedule.restarts": {"period", "restarts"},
    "schedule.restart_weights": {"restarts"},
    "schedule.milestones": {"halved_at", "lowered_at"},
    "schedule.step_size": {"halved_every"},
    "schedule.gamma": {"halved_at", "halved_every"},
}


class Setting(NamedTuple):
    """A setting of a stage, and what the report says of it.

    `status` is "stated", "stated in part", "implied", "unspecified" or "ours"; `note` says what the
    report leaves open.
    """

    key: str
    value: Any
    status: str
    note: str = ""


def unmarked(name: str, recipe: Recipe) -> list[str]:
    """Return the values that the report leaves open and that `unspecified` does not list."""
    return [
        f"{stage.name}: {setting.key}"
        for stage, settings in stage_settings(name, recipe)
        for setting in settings
        if setting.status == "unspecified"
        and not any(contains(path, setting.key) for path in stage.unspecified)
    ]


def wrongly_marked(name: str, recipe: Recipe) -> list[str]:
    """Return the entries of `unspecified` with a value that the report states or implies."""
    return [
        f"{stage.name}: {path}"
        for stage, settings in stage_settings(name, recipe)
        for path in stage.unspecified
        if any(
            setting.status != "unspecified"
            and (contains(path, setting.key) or contains(setting.key, path))
            for setting in settings
            if setting.key != "init_from" or path != "init_from.weights"
        )
    ]


def contains(path: str, key: str) -> bool:
    return f"{key}.".startswith(f"{path}.")


def stage_settings(name: str, recipe: Recipe) -> Iterator[tuple[Stage, list[Setting]]]:
    """Yield every stage with its settings, of its first run."""
    run = 0
    for index, stage in enumerate(recipe.stage):
        values = leaves(recipe, index)
        if stage.ours:
            yield stage, [Setting(key, value, "ours") for key, value in values]
            continue
        entry = stage_of_runs(name)[run]
        first = next(run for run in recipe.runs if run.stage.name == stage.name)
        defaults = registry.get_method(recipe.method_of(stage)).default_hparams()
        is_released = {**defaults, **recipe.hparams_at(first)} == defaults
        settings = [setting(name, entry, key, value) for key, value in values]
        yield (
            stage,
            [
                s._replace(status="implied", note=s.note or "as in the released network")
                if is_released and s.key.startswith("hparams.") and s.status == "unspecified"
                else s
                for s in settings
            ],
        )
        run += stage.repeat


def setting(name: str, entry: int, key: str, value: Any) -> Setting:
    """Return a setting of the stage `entry` of the report."""
    note = next((text for path, text in notes(name)[entry].items() if contains(path, key)), "")
    is_first = (entry, key, value) == (0, "init_from", "scratch")
    if key in left_open(name)[entry]:
        return Setting(key, value, "unspecified", note)
    if is_stated(stated(name)[entry], key, value):
        return Setting(key, value, "stated in part" if note else "stated", note)
    if is_stated(implied(name)[entry], key, value) or is_first:
        return Setting(key, value, "implied", note)
    return Setting(key, value, "unspecified", note)


def leaves(recipe: Recipe, index: int) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of all settings of a stage, such as `optimizer.b1`."""
    stage = json.loads(to_json(recipe))["stage"][index]
    for name, value in stage.items():
        table = value if isinstance(value, dict) and name != "init_from" else {"": value}
        for key, leaf in table.items():
            path = f"{name}.{key}".rstrip(".")
            is_used = path not in USED_BY or value["name"] in USED_BY[path]
            is_set = leaf not in (None, False, [], {}, 0, DEFAULTS.get(path))
            if is_set and is_used and path not in EXCLUDED_KEYS:
                yield path, without_weights(leaf) if name == "init_from" else leaf
        if name == "init_from" and starts_from_average(recipe, index):
            yield "init_from.weights", value["weights"] if isinstance(value, dict) else "ema"


def without_weights(init_from: Any) -> Any:
    """Return `init_from` without its key `weights`, a setting of its own."""
    if not isinstance(init_from, dict):
        return init_from
    return {key: value for key, value in init_from.items() if key != "weights"}


def starts_from_average(recipe: Recipe, index: int) -> bool:
    """Return whether a stage starts from a stage with a moving average, or without it from that."""
    source = recipe.stage[index].init_source
    if source == "previous" and index:
        return recipe.stage[index - 1].ema is not None
    name = source.stage if isinstance(source, InitFrom) else None
    return any(stage.ema is not None for stage in recipe.stage if stage.name == name)


def is_stated(values: dict[str, Any], key: str, value: Any) -> bool:
    """Return whether these fields of the report determine the value of a key."""
    if key in SCHEDULE_FIELDS:
        rate = values.get("learning_rate", {})
        return bool(SCHEDULE_FIELDS[key] & (set(rate) if isinstance(rate, dict) else {"from"}))
    if key.startswith("loss."):  # without weights one term has 1, since only ratios matter
        loss = readings("loss", values.get("loss", ()))[0]
        return bool(loss) and (isinstance(loss, dict) or len(loss) == 1 or value == 1)
    if key == "data.hr_patch_sizes" and isinstance(values.get("hr_patch_size"), dict):
        return False  # the report gives only their number and range
    return bool(FIELDS.get(key, set()) & set(values))
