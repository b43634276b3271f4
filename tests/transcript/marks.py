"""Where the text of a recipe owns up to what is ours: a comment that says `unsaid` or `implied`.

A mark stands on the lines of its key or of the header of its table, in the comment right above, or
on a neighbour's lines, if it names the key. It holds on for later stages that say the same.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transcript.said import printed, readings, turns

MARK = re.compile(r"#.*\b(unsaid|implied)\b")
HEADER = re.compile(r"\[+([a-z][\w.]*)\]+")
KEY = re.compile(r"([a-z]\w*)\s*=")

ASKED = "steps epochs data loss optimiser schedule ema start teacher lora prune".split()
UNASKED = ("data.small",)  # of our pictures, not of the training
FIELDS = {  # of the transcript, any of which states the key
    "steps": {"iterations"},
    "epochs": {"epochs"},
    "data.sets": {"data"},
    "data.patches": {"hr_patch", "lr_patch", "patch"},
    "data.batch": {"batch", "batch_per_gpu"},
    "data.augment": {"augmentation"},
    "optimiser.name": {"optimiser"},
    "optimiser.b1": {"betas"},
    "optimiser.b2": {"betas"},
    "optimiser.weight_decay": {"weight_decay"},
    "optimiser.muon_lr": {"muon_rate"},
    "optimiser.momentum": {"momentum"},
    "ema": {"ema"},
    "start": {"start"},
    "teacher.stage": {"teacher"},
    "teacher.method": {"teacher"},
    "teacher.weights": {"teacher"},
    "teacher.taps": {"tapped_blocks"},
}
RATES = {  # of the field `rate`
    "optimiser.lr": {"from"},
    "schedule.name": {"cosine", "halved_at", "halved_every", "lowered_at"},
    "schedule.end_lr": {"to"},
    "schedule.restarts": {"period", "restarts"},
    "schedule.restart_weights": {"restarts"},
    "schedule.milestones": {"halved_at", "lowered_at"},
    "schedule.every": {"halved_every"},
    "schedule.gamma": {"halved_at", "halved_every"},
}


@dataclass(frozen=True, kw_only=True)
class Note:
    """A key or a header, `optimiser.lr` of the `stage`th stage, with its comments."""

    stage: int
    path: str
    lines: list[str]

    def marks(self, key: str) -> bool:
        if not any(MARK.search(line) for line in self.lines):
            return False
        return f"{key}.".startswith(f"{self.path}.") or self._names(key)

    def _names(self, key: str) -> bool:
        table, _, name = key.rpartition(".")
        beside = table == self.path.rpartition(".")[0]
        word = re.compile(rf"#.*\b{name}\b")
        return beside and any(word.search(line) for line in self.lines)


def unmarked(method: str, text: str) -> list[str]:
    """What the recipe `text` says beyond the report without a mark."""
    every, held = notes(text), set[str]()
    found: list[str] = []
    for index, (stage, said) in enumerate(beside(method, text)):
        for key, value in leaves(stage):
            if stated(said, key, value) or (index, key, value) == (0, "start", "new"):
                continue
            if f"{key} = {value}" in held or any(
                note.marks(key) for note in every if note.stage == index
            ):
                held.add(f"{key} = {value}")
            else:
                found.append(f"{stage['name']}: {key} = {value}")
    return found


def beside(method: str, text: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every stage of the recipe with what the report prints of it, at its first turn."""
    run = 0
    for stage in tomllib.loads(text)["stage"]:
        yield stage, printed(method)[turns(method)[run]]
        run += stage.get("repeat", 1)


def leaves(stage: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """`optimiser.lr` and its value, for all keys that are asked after."""
    for name in ASKED:
        value = stage.get(name)
        inner = value if isinstance(value, dict) and name != "start" else {"": value}
        for key, leaf in inner.items():
            path = f"{name}.{key}".rstrip(".")
            if leaf is not None and path not in UNASKED:
                yield path, leaf


def stated(said: dict[str, Any], key: str, value: Any) -> bool:
    """Whether the report prints what the recipe says there."""
    if key in RATES:
        rate = said.get("rate", {})
        return bool(RATES[key] & (set(rate) if isinstance(rate, dict) else {"from"}))
    if key.startswith("loss."):  # of terms without weights, one has 1: only their ratios matter
        loss = readings("loss", said.get("loss", ()))[0]
        return bool(loss) and (isinstance(loss, dict) or len(loss) == 1 or value == 1)
    if key == "data.patches" and isinstance(said.get("hr_patch"), dict):
        return False  # of several shapes the list is unsaid
    return bool(FIELDS.get(key, set()) & set(said))


def notes(text: str) -> list[Note]:
    """All keys and headers of a recipe."""
    found, above, stage, table = [Note(stage=-1, path="", lines=[])], list[str](), -1, ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            stage += header[1] == "stage" and line.startswith("[[")
            table = header[1].removeprefix("stage").removeprefix(".")
            found.append(Note(stage=stage, path=table, lines=[*above, line]))
        elif key := KEY.match(line):
            path = f"{table}.{key[1]}".removeprefix(".")
            found.append(Note(stage=stage, path=path, lines=[*above, line]))
        elif line and not line.startswith("#"):
            found[-1].lines.append(line)  # of a list that goes on
        above = [*above, line] if line.startswith("#") else []
    return found
