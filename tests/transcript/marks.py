"""Marks of values that the report does not state: comments with `unspecified` or `implied`.

A mark is on the lines of its key or of the header of its table, in the comment directly above, or
on the lines of another key of the table if it names the key. It also applies to later stages with
the same value.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transcript.said import readings, stage_of_runs, stated

MARK = re.compile(r"#.*\b(unspecified|implied)\b")
HEADER = re.compile(r"\[+([a-z][\w.]*)\]+")
KEY = re.compile(r"([a-z]\w*)\s*=")

KEYS = "steps epochs data loss optimizer schedule ema init_from teacher lora prune".split()
EXCLUDED_KEYS = ("data.undersized",)  # about our datasets, not the training
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


@dataclass(frozen=True, kw_only=True)
class Note:
    """A key or a header, `optimizer.learning_rate` of stage `stage`, with its comments."""

    stage: int
    path: str
    lines: list[str]

    def marks(self, key: str) -> bool:
        if not any(MARK.search(line) for line in self.lines):
            return False
        return f"{key}.".startswith(f"{self.path}.") or self._names(key)

    def _names(self, key: str) -> bool:
        table, _, name = key.rpartition(".")
        same_table = table == self.path.rpartition(".")[0]
        pattern = re.compile(rf"#.*\b{name}\b")
        return same_table and any(pattern.search(line) for line in self.lines)


def unmarked(method: str, text: str) -> list[str]:
    """Return the values of a recipe that the report does not state and that have no mark."""
    all_notes, marked = notes(text), set[str]()
    missing: list[str] = []
    for index, (stage, values) in enumerate(stages_with_statements(method, text)):
        for key, value in leaves(stage):
            if is_stated(values, key, value) or (index, key, value) == (0, "init_from", "scratch"):
                continue
            if f"{key} = {value}" in marked or any(
                note.marks(key) for note in all_notes if note.stage == index
            ):
                marked.add(f"{key} = {value}")
            else:
                missing.append(f"{stage['name']}: {key} = {value}")
    return missing


def stages_with_statements(
    method: str, text: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield every stage of the recipe with the values of the report, for its first repetition."""
    run = 0
    for stage in tomllib.loads(text)["stage"]:
        yield stage, stated(method)[stage_of_runs(method)[run]]
        run += stage.get("repeat", 1)


def leaves(stage: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of all compared keys, such as `optimizer.learning_rate`."""
    for name in KEYS:
        value = stage.get(name)
        table = value if isinstance(value, dict) and name != "init_from" else {"": value}
        for key, leaf in table.items():
            path = f"{name}.{key}".rstrip(".")
            if leaf is not None and path not in EXCLUDED_KEYS:
                yield path, leaf


def is_stated(values: dict[str, Any], key: str, value: Any) -> bool:
    """Return whether the report states the value of a key."""
    if key in SCHEDULE_FIELDS:
        rate = values.get("learning_rate", {})
        return bool(SCHEDULE_FIELDS[key] & (set(rate) if isinstance(rate, dict) else {"from"}))
    if key.startswith("loss."):  # without weights one term has 1, since only ratios matter
        loss = readings("loss", values.get("loss", ()))[0]
        return bool(loss) and (isinstance(loss, dict) or len(loss) == 1 or value == 1)
    if key == "data.hr_patch_sizes" and isinstance(values.get("hr_patch_size"), dict):
        return False  # the list of several sizes is unspecified
    return bool(FIELDS.get(key, set()) & set(values))


def notes(text: str) -> list[Note]:
    """Return all keys and headers of a recipe."""
    result, above, stage, table = [Note(stage=-1, path="", lines=[])], list[str](), -1, ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            stage += header[1] == "stage" and line.startswith("[[")
            table = header[1].removeprefix("stage").removeprefix(".")
            result.append(Note(stage=stage, path=table, lines=[*above, line]))
        elif key := KEY.match(line):
            path = f"{table}.{key[1]}".removeprefix(".")
            result.append(Note(stage=stage, path=path, lines=[*above, line]))
        elif line and not line.startswith("#"):
            result[-1].lines.append(line)  # a list over several lines
        above = [*above, line] if line.startswith("#") else []
    return result
