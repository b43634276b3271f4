"""The folder of a run: its resolved recipe, its metrics, its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esrjax.errors import UserError
from esrjax.training import recipe as recipes
from esrjax.training.cluster import leads, together
from esrjax.training.recipe import Recipe


class RunExists(UserError):
    """The folder already holds a run."""


class NoRun(UserError):
    """The folder holds no run to go on with."""


class OtherRecipe(UserError):
    """The folder holds a run of another recipe."""


class UnwritableRun(UserError):
    """Nothing can be written into the folder."""


@dataclass(frozen=True)
class Folder:
    """Where a run keeps what it writes; of several processes the first alone writes."""

    path: Path

    @classmethod
    def open(cls, path: Path, recipe: Recipe, *, resume: bool) -> Folder:
        """A new folder with the resolved recipe in it, or, to resume, one that has the same.

        What moves no weights may have changed since.
        """
        folder, held = cls(path), read(path)
        if held is not None and not resume:
            raise _exists(path)
        if held is None and resume:
            raise _no_run(path)
        if held is not None and held.essence != recipe.essence:
            raise _other(path, held.essence, recipe.essence)
        together("the folder")  # nothing is written before all have looked
        if held != recipe:
            folder._write("recipe.json", recipes.to_json(recipe))
        return folder

    def note(self, **metrics: Any) -> None:
        """Append one line to `metrics.jsonl`."""
        if not leads():
            return
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that will be done again."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            lines = [line for line in file.read_text().splitlines() if _step(line) <= step]
            self._write("metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def _write(self, name: str, text: str) -> None:
        """All or nothing."""
        if not leads():
            return
        beside = self.path / f".{name}.partial"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            beside.write_text(text)
            os.replace(beside, self.path / name)
        except OSError as error:
            raise _unwritable(self.path, error) from error


def read(path: Path) -> Recipe | None:
    """The recipe of the run in a folder, if there is one."""
    file = path / "recipe.json"
    return recipes.load(file) if file.is_file() else None


def _step(line: str) -> float:
    """The step of a line of metrics; a line cut short counts as the future."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


def _exists(path: Path) -> RunExists:
    return RunExists(
        f"there is already a run in {str(path)!r}",
        rule="a run has a folder of its own; nothing is overwritten",
        remedy="go on with it by --resume, or choose another folder with -o",
    )


def _no_run(path: Path) -> NoRun:
    return NoRun(
        f"there is no run in {str(path)!r}",
        rule="to resume, the folder holds the recipe.json of a run",
        remedy="check the folder, or start anew without --resume",
    )


def _other(path: Path, held: Recipe, recipe: Recipe) -> OtherRecipe:
    changed = list(_differences(_plain(held), _plain(recipe)))
    return OtherRecipe(
        f"the run is of another recipe: {'; '.join(changed[:5])}",
        rule="a run goes on with the recipe it began with; only save_every and data.workers, "
        "memory and feed may change",
        place=str(path / "recipe.json"),
        remedy="leave the recipe out and only say --resume -o, or choose another folder",
    )


def _plain(recipe: Recipe) -> Any:
    return json.loads(recipes.to_json(recipe))


def _differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """`stage.0.steps is 100 there and 200 here`, for every value that differs."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in sorted({*ours, *theirs}):
            yield from _differences(ours.get(key), theirs.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _differences(*pair, f"{path}.{index}")
    elif ours != theirs:
        yield f"{path} is {ours!r} there and {theirs!r} here"


def _unwritable(path: Path, error: OSError) -> UnwritableRun:
    return UnwritableRun(
        f"cannot write into the folder of the run: {error.strerror}",
        rule="the folder must exist or be creatable, be writable and have room",
        place=str(path),
        remedy="make room and go on with --resume, or choose another folder with -o",
    )
