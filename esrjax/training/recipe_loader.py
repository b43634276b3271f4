"""Loading of recipes: shipped or from a file, with overrides, all errors reported at once."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esrjax.errors import NotFound, RecipeError
from esrjax.schema import bullet_list, format_errors
from esrjax.training.recipe import RECIPE, Recipe


def load(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by name, or from a file.

    Args:
        source: Name of a shipped recipe (`quick`), or path of a .toml or resolved .json file.
        overrides: `stage.0.optimizer.learning_rate=2e-4`, applied before validation.

    Raises:
        NotFound: There is no such recipe or file.
        RecipeError: The file or an override is invalid; lists all mistakes.
    """
    file = find_recipe_file(source)
    try:
        text = file.read_text("utf-8")
        data = json.loads(text) if file.name.endswith(".json") else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise _invalid_recipe([f"the file cannot be read: {error}"], str(source)) from error
    return parse(_apply_overrides(data, overrides, str(source)), str(source))


def parse(data: Mapping[str, Any], location: str = "the recipe") -> Recipe:
    """Return the recipe of plain data (dicts, lists, strings, numbers).

    Args:
        data: The content of a recipe file.
        location: What an error names as the location of the recipe.

    Raises:
        RecipeError: Lists all mistakes.
    """
    try:
        # By way of JSON: strict pydantic accepts a list for a tuple only there.
        return RECIPE.validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise _invalid_recipe(format_errors(error, RECIPE), location) from None


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that esrjax ships, sorted."""
    files = resources.files("esrjax_configs").iterdir()
    tables = [file for file in files if file.name.endswith(".toml")]
    recipes = [file for file in tables if "[[stage]]" in file.read_text()]  # others are rules
    return sorted(file.name.removesuffix(".toml") for file in recipes)


def find_recipe_file(source: str | Path) -> Any:
    """Return the file of a shipped recipe, or `source` itself if it is a file.

    Raises:
        NotFound: There is neither.
    """
    shipped = resources.files("esrjax_configs") / f"{source}.toml"
    file = shipped if shipped.is_file() else Path(source)
    if file.is_file():
        return file
    similar = difflib.get_close_matches(str(source), shipped_recipes(), n=1)
    raise NotFound(
        f"Unknown recipe {str(source)!r}",
        rule=f"a recipe is a .toml file, or one that esrjax ships: {', '.join(shipped_recipes())}",
        remedy=f"did you mean {similar[0]!r}?" if similar else "check the path or the name",
    )


def _apply_overrides(
    data: dict[str, Any], overrides: Sequence[str], location: str
) -> dict[str, Any]:
    """Return `data` with every `path=value` applied; a value that is not TOML is a string."""
    problems: list[str] = []
    for override in overrides:
        path, equals, value = override.partition("=")
        problem = _set_at(data, path.split("."), _value(value)) if equals else "is not path=value"
        problems += [f"--set {override} {problem}"] if problem else []
    if problems:
        raise _invalid_recipe(problems, location)
    return data


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set_at(node: Any, path: list[str], value: Any) -> str | None:
    """Set the value at `path`; return what is wrong if there is no such path."""
    *parents, last = path
    for key in parents:
        if isinstance(node, list):
            if not (key.isdigit() and int(key) < len(node)):  # pyright: ignore[reportUnknownArgumentType]
                return f"is not a path: {key!r} is not an index of a list of {len(node)}"  # pyright: ignore[reportUnknownArgumentType]
            node = node[int(key)]
        elif isinstance(node, dict):
            node = node.setdefault(key, {})
        else:
            return f"is not a path: the parent of {key!r} is a value"
    if not isinstance(node, dict):
        return f"is not a path: the parent of {last!r} is not a table"
    node[last] = value
    return None


def _invalid_recipe(mistakes: list[str], location: str) -> RecipeError:
    return RecipeError(
        f"the recipe has {bullet_list(mistakes)}",
        rule="a recipe has the keys that `esrjax recipes schema` prints, and no others",
        location=location,
        remedy="correct the listed keys; `esrjax recipes show quick` prints a complete example",
    )
