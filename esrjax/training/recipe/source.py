"""A recipe, read: shipped or from a file, with changes from outside; all its mistakes at once."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esrjax.errors import UserError
from esrjax.schema import listing, mistakes
from esrjax.training.recipe.recipe import RECIPE, Recipe


class UnknownRecipe(UserError):
    """Neither a shipped recipe nor a file."""


class RecipeError(UserError):
    """A file that does not say a recipe."""


def load(source: str | Path, changes: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name (`quick`), or that of a .toml or resolved .json file.

    changes: `stage.0.optimiser.lr=2e-4`, applied before anything is checked.
    """
    file = _file(source)
    try:
        text = file.read_text("utf-8")
        said = json.loads(text) if file.name.endswith(".json") else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise _wrong([f"the file cannot be read: {error}"], str(source)) from error
    return parse(_changed(said, changes, str(source)), str(source))


def parse(said: Mapping[str, Any], place: str = "the recipe") -> Recipe:
    """A recipe from plain data, or one error with all its mistakes."""
    try:
        # by way of JSON, in which strict pydantic takes a list for a tuple
        return RECIPE.validate_json(json.dumps(said, default=str))
    except ValidationError as error:
        raise _wrong(mistakes(error, RECIPE), place) from None


def _file(source: str | Path) -> Any:
    shipped = resources.files("esrjax_configs") / f"{source}.toml"
    file = shipped if shipped.is_file() else Path(source)
    if file.is_file():
        return file
    beside = resources.files("esrjax_configs").iterdir()
    tables = [p for p in beside if p.name.endswith(".toml")]
    names = sorted(p.name.removesuffix(".toml") for p in tables if "[[stage]]" in p.read_text())
    raise UnknownRecipe(
        f"there is no recipe {str(source)!r}",
        rule=f"a recipe is a .toml file, or one that esrjax ships: {', '.join(names)}",
        remedy="check the path or the name",
    )


def _changed(said: dict[str, Any], changes: Sequence[str], place: str) -> dict[str, Any]:
    """`said` with every `path=value` put in; a value is TOML, or else a word."""
    problems: list[str] = []
    for change in changes:
        path, equals, value = change.partition("=")
        problem = _put(said, path.split("."), _value(value)) if equals else "is not path=value"
        problems += [f"--set {change} {problem}"] if problem else []
    if problems:
        raise _wrong(problems, place)
    return said


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(said: Any, path: list[str], value: Any) -> str | None:
    """Set what lies at `path`; the complaint where there is no such place."""
    *way, last = path
    for step in way:
        if isinstance(said, list):
            if not (step.isdigit() and int(step) < len(said)):  # pyright: ignore[reportUnknownArgumentType]
                return f"has no place: {step!r} is not one of {len(said)} positions"  # pyright: ignore[reportUnknownArgumentType]
            said = said[int(step)]
        elif isinstance(said, dict):
            said = said.setdefault(step, {})
        else:
            return f"has no place: what is above {step!r} is a value"
    if not isinstance(said, dict):
        return f"has no place: {last!r} names nothing there"
    said[last] = value
    return None


def _wrong(found: list[str], place: str) -> RecipeError:
    return RecipeError(
        f"the recipe has {listing(found)}",
        rule="every field of esrjax.training.recipe.Recipe with its type, and no other",
        place=place,
        remedy="mend what is listed; configs/quick.toml is a complete example",
    )
