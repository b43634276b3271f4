"""Where the text of a recipe owns up to what is ours: a comment that says `unsaid` or `implied`.

A mark stands on the line of its key, in the comment right above, or in any comment of the stage
that names the key. It holds on for later stages that say the same.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from transcript.said import printed, turns

MARK = re.compile(r"#.*\b(unsaid|implied)\b")
KEY = re.compile(r'([\w."-]+)\s*=')
HEADER = re.compile(r"\[+([\w.]+)\]+")
ASKED = ("steps", "epochs", "data", "loss", "optimiser", "schedule", "ema", "start", "teacher",
         "lora", "prune")  # fmt: skip
UNASKED = ("data.small",)
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


def unmarked(method: str, text: str) -> list[str]:
    """What the recipe `text` says beyond the report without a mark."""
    notes = list(comments(text))
    held: set[str] = set()
    found: list[str] = []
    for index, (stage, said) in enumerate(zip(stages(text), spoken(method, text), strict=True)):
        ours = {key: value for key, value in leaves(stage) if not stated(said, key, value)}
        if index == 0 and ours.get("start") == "new":
            del ours["start"]  # of a first stage it goes without saying
        for key, value in ours.items():
            if f"{key} = {value}" in held or marked(notes, index, key):
                held.add(f"{key} = {value}")
            else:
                found.append(f"{stage['name']}: {key} = {value}")
    return found


def stages(text: str) -> list[dict[str, Any]]:
    return tomllib.loads(text)["stage"]


def spoken(method: str, text: str) -> list[dict[str, Any]]:
    """What the report prints of each stage of the recipe, of the first turn where it repeats."""
    reports, first = turns(method), 0
    found: list[dict[str, Any]] = []
    for stage in stages(text):
        found.append(printed(method)[reports[first]])
        first += stage.get("repeat", 1)
    return found


def leaves(stage: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """`optimiser.lr` -> its value, for all keys that are asked after."""
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
    if key.startswith("loss."):  # without weights one is 1: only their ratio matters
        loss = said.get("loss", ())
        return bool(loss) and (isinstance(loss, dict) or len(loss) == 1 or value == 1)
    return bool(FIELDS.get(key, set()) & set(said))


def marked(notes: list[tuple[int, str, str]], stage: int, key: str) -> bool:
    word = re.compile(rf"#.*\b{key.split('.')[-1]}\b")
    return any(
        MARK.search(note) and (f"{key}.".startswith(f"{path}.") or word.search(note))
        for index, path, note in notes
        if index == stage
    )


def comments(text: str) -> Iterator[tuple[int, str, str]]:
    """Stage, key, and its lines with the comment above, for every key and header of the text."""
    stage, table, above, lines, depth = -1, "", [], [], 0
    for line in text.splitlines():
        code = line.split("#")[0]
        if depth == 0 and not code.strip():
            above = [*above, line] if line else []
            continue
        if depth == 0:
            header = HEADER.match(line)
            stage += line.startswith("[[stage]]")
            if header:
                table = header[1].removeprefix("stage").removeprefix(".")
            key = table if header else f"{table}.{KEY.match(line)[1]}".removeprefix(".")
            lines, above = [*above, line], []
            depth = 0 if header else code.count("[") + code.count("{")
            depth -= 0 if header else code.count("]") + code.count("}")
        else:
            lines.append(line)
            depth += code.count("[") + code.count("{") - code.count("]") - code.count("}")
        if depth == 0:
            yield stage, key, "\n".join(lines)
