"""The folder of a training run: resolved recipe, metrics and weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esrjax.errors import UserError
from esrjax.training import recipe as recipes
from esrjax.training.cluster import barrier, is_main_process
from esrjax.training.recipe import Recipe


class RunExists(UserError):
    """Raised when a new run would go into the folder of an existing one."""


class NoRun(UserError):
    """Raised when the folder contains no run to resume."""


class RecipeMismatch(UserError):
    """Raised when a run is resumed with another recipe."""


class UnwritableRun(UserError):
    """Raised when the folder of a run cannot be written."""


@dataclass(frozen=True)
class RunDir:
    """The folder of a run; with several processes, only the main process writes.

    Attributes:
        path: The folder.
    """

    path: Path

    @classmethod
    def open(cls, path: Path, recipe: Recipe, *, resume: bool) -> RunDir:
        """Create the folder with the resolved recipe, or open an existing one to resume.

        Args:
            path: The folder.
            recipe: The recipe. To resume, its `resume_key` must equal the stored one's, so that the
                resumed run trains the same weights as an uninterrupted one.
            resume: Whether to continue an existing run.

        Raises:
            RunExists: There is a run, and `resume` is false.
            NoRun: There is none, and `resume` is true.
            RecipeMismatch: The run has another recipe.
            UnwritableRun: The folder cannot be written.
        """
        folder, stored = cls(path), read_recipe(path)
        if stored is not None and not resume:
            raise _run_exists(path)
        if stored is None and resume:
            raise _no_run(path)
        if stored is not None and stored.resume_key != recipe.resume_key:
            raise _recipe_mismatch(path, stored.resume_key, recipe.resume_key)
        barrier("the folder")  # no process writes before all of them have read
        if stored != recipe:
            folder._write("recipe.json", recipes.to_json(recipe))
        return folder

    def log_metrics(self, **metrics: Any) -> None:
        """Append one line of JSON to `metrics.jsonl`."""
        if not is_main_process():
            return
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def truncate_metrics(self, step: int) -> None:
        """Drop the metrics after `step`, over all stages: a resumed run logs them again."""
        file = self.path / "metrics.jsonl"
        if file.exists():
            lines = [line for line in file.read_text().splitlines() if _step(line) <= step]
            self._write("metrics.jsonl", "".join(f"{line}\n" for line in lines))

    def _write(self, name: str, text: str) -> None:
        """Write a file atomically."""
        if not is_main_process():
            return
        partial = self.path / f".{name}.partial"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            partial.write_text(text)
            os.replace(partial, self.path / name)
        except OSError as error:
            raise _unwritable(self.path, error) from error


def read_recipe(path: Path) -> Recipe | None:
    """Return the recipe of the run in a folder, None if there is none."""
    file = path / "recipe.json"
    return recipes.load(file) if file.is_file() else None


def _step(line: str) -> float:
    """Return the step of a line of metrics; infinity for a line that a kill truncated."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


def _run_exists(path: Path) -> RunExists:
    return RunExists(
        f"the folder already contains a run: {str(path)!r}",
        rule="every run has its own folder; nothing is overwritten",
        remedy="continue it with --resume, or choose another folder with -o",
    )


def _no_run(path: Path) -> NoRun:
    return NoRun(
        f"No run in {str(path)!r}",
        rule="a run to resume has a recipe.json in its folder",
        remedy="check the folder, or start a new run without --resume",
    )


def _recipe_mismatch(path: Path, stored: Recipe, recipe: Recipe) -> RecipeMismatch:
    differences = list(_differences(_as_json(stored), _as_json(recipe)))
    return RecipeMismatch(
        f"the run has another recipe: {'; '.join(differences[:5])}",
        rule="a run is resumed with its own recipe; only save_every, data.num_workers, "
        "data.cache_gib and data.crop_on may change",
        location=str(path / "recipe.json"),
        remedy="omit the recipe and pass only --resume and -o, or choose another folder",
    )


def _as_json(recipe: Recipe) -> Any:
    return json.loads(recipes.to_json(recipe))


def _differences(stored: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield `stage.0.steps: 100 in the run, 200 now` for every value that differs."""
    if isinstance(stored, Mapping) and isinstance(new, Mapping):
        for key in sorted({*stored, *new}):
            yield from _differences(stored.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif isinstance(stored, list) and isinstance(new, list) and len(stored) == len(new):
        for index, pair in enumerate(zip(stored, new, strict=True)):
            yield from _differences(*pair, f"{path}.{index}")
    elif stored != new:
        yield f"{path}: {stored!r} in the run, {new!r} now"


def _unwritable(path: Path, error: OSError) -> UnwritableRun:
    return UnwritableRun(
        f"cannot write to the folder of the run: {error.strerror}",
        rule="the folder can be created, is writable and has free space",
        location=str(path),
        remedy="free disk space and continue with --resume, or choose another folder with -o",
    )
