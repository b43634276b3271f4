"""Generated pages of the documentation site, as a hook of MkDocs: home, commands, recipes, API.

`make docs` builds the site. The pages come from the README, from the commands' own help, from the
schema of recipes and from docstrings, so that none of them can be out of date.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parents[1]
API_MODULES: Mapping[str, str] = {  # package -> its documented modules
    "esrjax": "inference method registry errors io",
    "esrjax.nn": "functional layers ops reparam lora quantization prune cost hooks state_dict "
    "checkpoint_io masking selective_scan",
    "esrjax.data": "image_io datasets resize verify tfds_records tfds_writer",
    "esrjax.evaluation": "metrics score upscale fuse_images",
    "esrjax.training": "recipe recipe_loader train logging stage_trainer train_state losses optim "
    "pipeline loader checkpoint init_from distributed",
    "esrjax.bench": "timing bench",
    "esrjax.challenge": "rules record results evaluate rank table sensitivity published_table "
    "submission",
    "esrjax.interop": "parity parity_report draws convert torch_model torch_compare torch_watch "
    "trace export engines similar",
    "esrjax.testing": "methods components kernels",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages; called by MkDocs."""
    from mkdocs.structure.files import File

    for path, text in generate_pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def generate_pages() -> dict[str, str]:
    """Return the text of every generated page, by its path in the site."""
    pages = {
        "index.md": _from_root("README.md"),
        "contributing.md": _from_root("CONTRIBUTING.md"),
        "changelog.md": _from_root("CHANGELOG.md"),
        "reference/commands.md": commands_page(),
        "reference/recipes.md": recipes_page(),
    }
    return pages | {f"reference/{name}.md": api_page(name) for name in API_MODULES}


def _from_root(name: str) -> str:
    """Return a page of the repository's root with its links as they are in the site."""
    text = (ROOT / name).read_text().replace("](docs/", "](")
    for page in ("CONTRIBUTING", "CHANGELOG"):
        text = text.replace(f"]({page}.md", f"]({page.lower()}.md")
    return text


# --- commands --------------------------------------------------------------------------------


def commands_page() -> str:
    """Return all commands with their help, arguments and options."""
    from esrjax.cli import app

    root: Any = typer.main.get_command(app)
    sections = [_command_section(path, command) for path, command in _walk("esrjax", root)]
    return "# Commands\n\nWhat `esrjax COMMAND --help` prints.\n\n" + "\n".join(sections)


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    for name, child in getattr(command, "commands", {}).items():
        if getattr(child, "commands", None):
            yield from _walk(f"{path} {name}", child)
        else:
            yield f"{path} {name}", child


def _command_section(path: str, command: Any) -> str:
    rows = [
        f"| {_option_names(param)} | {_cell(param.help)} | {_default(param)} |"
        for param in command.params
        if not getattr(param, "hidden", False) and param.name != "help"
    ]
    table = "| argument, option | | default |\n|---|---|---|\n" + "\n".join(rows)
    text = "\n\n".join(" ".join(part.split()) for part in (command.help or "").split("\n\n"))
    return f"## `{path}`\n\n{text}\n\n{table}\n"


def _option_names(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar or param.name.upper()}`"
    return ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if isinstance(getattr(param, "show_default", None), str):
        return _cell(param.show_default)
    is_empty = param.default in (None, False, (), [])
    return "" if is_empty else f"`{_cell(param.default)}`"


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return " ".join(text.split()).replace("|", "\\|")


# --- recipes ---------------------------------------------------------------------------------


def recipes_page() -> str:
    """Return every table of a recipe with the type, default and meaning of its keys."""
    from esrjax.training.recipe import RECIPE

    schema = RECIPE.json_schema()
    definitions = {"Recipe": schema, **schema["$defs"]}
    sections = [_schema_section(name, node) for name, node in definitions.items()]
    intro = (
        "# Recipe reference\n\nA recipe is a TOML file; [training](../training.md) explains it. "
        "`esrjax recipes schema` prints the JSON schema of its file. `[defaults]` may have any key "
        "of a [stage](#stage): each stage takes from it what it lacks, tables key by key. What is "
        "required may come from there.\n\n"
    )
    return intro + "\n".join(sections)


def _schema_section(name: str, node: Mapping[str, Any]) -> str:
    summary, _, attributes = node.get("description", "").partition("Attributes:\n")
    meanings = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.M))
    rows = [
        f"| `{key}` | {_type(field)} | {_field_default(key, field, node)} "
        f"| {_cell(meanings.get(key))} |"
        for key, field in node.get("properties", {}).items()
    ]
    table = "| key | type | default | |\n|---|---|---|---|\n" + "\n".join(rows)
    return f"## {name}\n\n{' '.join(summary.split())}\n\n{table}\n"


def _field_default(key: str, field: Mapping[str, Any], node: Mapping[str, Any]) -> str:
    if key in node.get("required", ()):
        return "required"
    default = field.get("default")
    if default is None:
        return ""
    return "empty" if default == [] else f"`{_cell(json.dumps(default))}`"


def _type(field: Mapping[str, Any]) -> str:
    """Return the type of a field of a JSON schema, linked where it is a table of its own."""
    match field:
        case {"$ref": ref}:
            name = ref.rsplit("/", 1)[-1]
            return f"[{name}](#{name.lower()})"
        case {"anyOf": options} | {"oneOf": options}:
            types = [_type(option) for option in options if option.get("type") != "null"]
            return " or ".join(dict.fromkeys(types))
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"const": value}:
            return f"`{value}`"
        case {"type": "array", "items": items}:
            return f"list of {_type(items)}"
        case {"type": "array", "prefixItems": items}:
            return "[" + ", ".join(map(_type, items)) + "]"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"table of {_type(values)}"
        case _:
            return str(field.get("type", "any"))


# --- API -------------------------------------------------------------------------------------


def api_page(name: str) -> str:
    """Return the page of a package: an identifier for each module, which mkdocstrings expands."""
    names = [name, *(f"{name}.{module}" for module in API_MODULES[name].split())]
    return f"# {name}\n\n" + "\n\n".join(f"::: {module}" for module in names) + "\n"
