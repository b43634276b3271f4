"""Loading of recipes: shipped or from a file, with defaults and overrides, all errors at once.

`[defaults]` of a recipe has what its stages share: every stage takes from it what it does not say,
tables merged key by key, unless it says `defaults = false`.
"""

import copy
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from esrjax import registry
from esrjax.errors import NotFound, PluginError, RecipeError, suggest
from esrjax.io import parse_json, parse_toml, read_bytes
from esrjax.schema import bullet_list, format_errors
from esrjax.training.recipe import RECIPE, Recipe

MAX_INITIAL_SHARE = 0.01  # of the initial weights in a moving average, above which a note says so
_MAX_DOTS = 16  # in a path; recipes have less than half of these levels


def load(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by name, or from a file.

    Args:
        source: Name of a shipped recipe (`quick`), or path of a .toml or resolved .json file.
        overrides: `stage.0.optimizer.learning_rate=2e-4` or `defaults.ema=0.999`, applied before
            validation; those of a stage take precedence, wherever its value is from.

    Raises:
        NotFound: There is no such recipe or file.
        RecipeError: The file or an override is invalid; lists all mistakes.
    """
    file = find_recipe_file(source)
    try:
        text = read_bytes(Path(str(file))).decode()
        data = parse_json(text) if file.name.endswith(".json") else parse_toml(text)
    except ValueError as error:  # of the encoding, TOML or JSON
        raise _invalid_recipe([f"the file cannot be read: {error}"], str(source)) from error
    if not isinstance(data, dict):
        raise _invalid_recipe([f"the file has a {type(data).__name__}, no table"], str(source))
    return parse(data, str(source), overrides)


def parse(
    data: Mapping[str, Any], location: str = "the recipe", overrides: Sequence[str] = ()
) -> Recipe:
    """Return the recipe of plain data (dicts, lists, strings, numbers).

    Args:
        data: The content of a recipe file.
        location: What an error names as the location of the recipe.
        overrides: As of `load`.

    Raises:
        RecipeError: Lists all mistakes.
    """
    data = copy.deepcopy(dict(data))
    of_defaults = [override for override in overrides if override.startswith("defaults.")]
    problems = _apply_overrides(data, of_defaults)
    if not isinstance(data.get("defaults", {}), dict):
        problems.append(f"defaults should be a table, found {data['defaults']!r}")
    problems += _invalid_switches(data)
    problems += [
        f"--set {o} has no effect: no stage takes it" for o in of_defaults if _is_unused(data, o)
    ]
    resolved = _merge_defaults(data)
    problems += _apply_overrides(resolved, [o for o in overrides if o not in of_defaults])
    if problems:
        raise _invalid_recipe(problems, location)
    try:
        text = json.dumps(resolved, default=str)
    except ValueError as error:  # a hexadecimal number of more digits than Python converts
        raise _invalid_recipe([f"a value cannot be read: {error}"], location) from None
    try:
        # By way of JSON: strict pydantic accepts a list for a tuple only there.
        return RECIPE.validate_json(text)
    except ValidationError as error:
        lines = [_locate(line, data, resolved) for line in format_errors(error, file_schema())]
        raise _invalid_recipe([*dict.fromkeys(lines)], location) from None


def file_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file: that of a `Recipe`, with `defaults`.

    No key of a stage is required but its name, because `defaults` may have it.
    """
    schema = RECIPE.json_schema()
    for table in schema["$defs"].values():
        table.pop("required", None)
    stage = schema["$defs"]["Stage"]
    stage["required"] = ["name"]
    shared = dict(stage["properties"])
    text = "Whether the stage takes from `defaults` what it lacks."
    stage["properties"]["defaults"] = {"type": "boolean", "default": True, "description": text}
    description = "What the stages share: each takes the keys that it lacks, tables key by key."
    defaults = {"type": "object", "description": description, "additionalProperties": False}
    schema["properties"]["defaults"] = defaults | {"properties": shared}
    return schema


def _is_unused(data: Mapping[str, Any], override: str) -> bool:
    """Return whether every stage has a value of its own at the path of a `defaults.PATH=VALUE`."""
    path = override.partition("=")[0].split(".")[1:]
    stages: Any = data.get("stage")
    return isinstance(stages, list) and all(
        _get_at(s, path) is not None or not _takes_defaults(s) for s in stages
    )


def _takes_defaults(stage: Any) -> bool:
    """Return whether a stage takes from `[defaults]`: it does not say `defaults = false`."""
    return not (isinstance(stage, dict) and stage.get("defaults") is False)


def _merge_defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without `[defaults]`, whose values are in every stage that lacks them."""
    defaults, stages = data.get("defaults"), data.get("stage")
    if not (isinstance(defaults, dict) and isinstance(stages, list)):
        return copy.deepcopy(dict(data))  # without defaults, or invalid, which validation reports
    rest = {key: value for key, value in data.items() if key != "defaults"}
    merged = [_merge(defaults, s) if _takes_defaults(s) else s for s in stages]
    merged = [{k: s[k] for k in s if k != "defaults"} if isinstance(s, dict) else s for s in merged]
    return copy.deepcopy(rest | {"stage": merged})


def _invalid_switches(data: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with `defaults = true` or `false` of the stages."""
    stages: Any = data.get("stage")
    entries: list[Any] = stages if isinstance(stages, list) else []
    switches = {
        f"stage.{index}.defaults": stage["defaults"]
        for index, stage in enumerate(entries)
        if isinstance(stage, dict) and "defaults" in stage
    }
    if switches and "defaults" not in data:
        return [f"{path} has no effect: the recipe has no [defaults]" for path in switches]
    return [
        f"{path} should be true or false, found {value!r}"
        for path, value in switches.items()
        if not isinstance(value, bool)
    ]


def _merge(default: Any, value: Any) -> Any:
    """Return `value` with the keys of `default` that it lacks, if both are tables."""
    if not (isinstance(default, dict) and isinstance(value, dict)):
        return value
    return default | {k: _merge(default[k], v) if k in default else v for k, v in value.items()}


def _locate(line: str, data: Mapping[str, Any], resolved: Mapping[str, Any]) -> str:
    """Return an error line with the path `defaults.KEY` if the value of the stage is from there."""
    match = re.match(r"stage\.(\d+)\.(\S+)", line)
    if match is None or "defaults" not in data:
        return line
    index, path = int(match[1]), match[2].split(".")
    default, value = _get_at(data["defaults"], path), _get_at(resolved["stage"][index], path)
    if _get_at(data["stage"][index], path) is not None or default is None or value != default:
        return line
    return f"defaults.{match[2]}{line[match.end() :]}"


def _get_at(node: Any, path: list[str]) -> Any:
    """Return the value at `path`, None if there is none."""
    for key in path:
        match node:
            case dict():
                node = node.get(key)
            case list() if key.isdigit():
                node = node[int(key)] if int(key) < len(node) else None
            case _:
                return None
    return node


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that esrjax ships, sorted."""
    return sorted(name for name, package in recipe_packages().items() if package == "esrjax")


def recipe_packages() -> dict[str, str]:
    """Return the recipes that can be named, with the package that ships each.

    Those of esrjax come first. A name that two packages ship has both, "a and b".
    """
    packages: dict[str, str] = {}
    for folder, package in _recipe_folders().items():
        for file in sorted(folder.iterdir(), key=lambda file: file.name):
            if file.name.endswith(".toml") and _is_recipe(file):
                name = file.name.removesuffix(".toml")
                packages[name] = f"{packages[name]} and {package}" if name in packages else package
    return packages


def _is_recipe(file: Any) -> bool:
    """Return whether a file has stages; others have rules or datasets, or are no regular files."""
    return os.path.isfile(str(file)) and b"[[stage]]" in read_bytes(Path(str(file)))


def _recipe_folders() -> dict[Any, str]:
    return {resources.files("esrjax_configs"): "esrjax", **registry.recipe_folders()}


def find_recipe_file(source: str | Path) -> Any:
    """Return the file of a recipe that a package ships, or `source` itself if it is a file.

    Raises:
        NotFound: There is neither.
        PluginError: Two packages ship a recipe of that name.
    """
    shipped = {folder / f"{source}.toml": package for folder, package in _recipe_folders().items()}
    found = {file: package for file, package in shipped.items() if os.path.isfile(str(file))}
    if len(found) > 1:
        raise PluginError(
            f"Recipe {str(source)!r} is shipped more than once",
            rule="one package ships a recipe of a name",
            location=" and ".join(found.values()),
            remedy="give the path of a file, or uninstall one of the packages",
        )
    file = next(iter(found), Path(source))
    if os.path.isfile(str(file)):  # unlike Path's, it takes names that are too long
        return file
    names = sorted(recipe_packages())
    raise NotFound(
        f"Unknown recipe {str(source)!r}",
        rule=f"a recipe is a .toml file, or one that a package ships: {', '.join(names)}",
        remedy=suggest(str(source), names, "check the path or the name"),
    )


def _apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set the value of every `path=value` in `data`; return what is wrong with them."""
    problems: list[str] = []
    for override in overrides:
        path, equals, text = override.partition("=")
        if path.count(".") > _MAX_DOTS:
            problems.append(f"--set {override:.100} has more than {_MAX_DOTS} dots")
            continue
        try:
            value = parse_toml(f"value = {text}")["value"]
        except ValueError:  # no TOML, or a number of more digits than Python converts
            value = text
        problem = _set_at(data, path.split("."), value) if equals else "is not path=value"
        problems += [f"--set {override} {problem}"] if problem else []
    return problems


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
        rule="a recipe has `defaults` and the keys that `esrjax recipes schema` prints, no others",
        location=location,
        remedy="correct the listed keys; `esrjax recipes show quick` prints a complete example",
    )


def recipe_notes(recipe: Recipe) -> list[str]:
    """Return notes on what the stages, by their length, do not reach or do not forget.

    That are moving averages which keep much of the initial weights, and steps of schedules beyond
    the end of the stage.
    """
    notes: list[str] = []
    for stage in recipe.stage:
        if stage.ema_initial_share > MAX_INITIAL_SHARE:
            notes.append(
                f"note: stage {stage.name!r}: ema = {stage.ema:g} over {stage.steps:,} steps "
                f"leaves {stage.ema_initial_share:.1%} of the initial weights in the result; set "
                "ema_warmup = true, lower ema, or train for longer"
            )
        if late := [f"{path} at {step:,}" for path, step in stage.late_steps]:
            text = f"not reached in {stage.steps:,} steps: {', '.join(late)}"
            notes.append(f"note: stage {stage.name!r}: {text}")
    return notes
