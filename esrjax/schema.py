"""Strict validation of external data (TOML, JSON) into frozen dataclasses, by pydantic."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

# Unknown keys, conversions between types, infinities and NaNs are errors.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


def _type_tag(value: Any) -> str:
    """Return the tag of a value's type; what has no tag of its own is a table or its dataclass."""
    types_by_tag: dict[str, Any] = {
        "[string]": str,
        "[number]": (int, float),
        "[list]": (list, tuple),
    }
    return next((tag for tag, types in types_by_tag.items() if isinstance(value, types)), "[table]")


# For unions: `Annotated[Annotated[str, STRING] | Annotated[InitFrom, TABLE], BY_TYPE]` is validated
# as the type that the value has, so that an error in a table is not also reported as "no string".
BY_TYPE = Discriminator(_type_tag)
STRING, NUMBER, LIST, TABLE = (Tag(f"[{name}]") for name in ("string", "number", "list", "table"))


def format_errors(error: ValidationError, adapter: TypeAdapter[Any] | None = None) -> list[str]:
    """Return one line for every validation error: its path, the value, what was expected.

    Args:
        error: As pydantic raised it.
        adapter: Of the expected type; with it, an unknown key comes with the closest known one.
    """
    schema = adapter.json_schema() if adapter is not None else {}
    return [
        f"{_dotted_path(detail)} {_error_text(detail, schema)}"
        for detail in _root_causes(error.errors())
    ]


def bullet_list(lines: list[str], noun: str = "error") -> str:
    """Return the number of lines (`2 errors:`), followed by the lines, indented."""
    count = f"1 {noun}:" if len(lines) == 1 else f"{len(lines)} {noun}s:"
    return "\n    ".join([count, *lines])


def _root_causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Drop the errors of lists that are too short only because their items are invalid."""
    locations = [detail["loc"] for detail in errors]
    return [
        detail
        for detail in errors
        if detail["type"] != "too_short"
        or not any(_is_inside(location, detail["loc"]) for location in locations)
    ]


def _is_inside(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _dotted_path(detail: ErrorDetails) -> str:
    return ".".join(str(step) for step in detail["loc"] if not _is_tag(step)) or "the document"


def _is_tag(step: int | str) -> bool:
    """Return whether it is pydantic's `[key]`, or the tag of a union."""
    return isinstance(step, str) and step.startswith("[")


def _error_text(detail: ErrorDetails, schema: Mapping[str, Any]) -> str:
    match detail["type"]:
        case "missing":
            return "is missing"
        case "unexpected_keyword_argument":
            return "is not a known key" + _suggestion(
                str(detail["loc"][-1]), detail["loc"][:-1], schema
            )
        case "json_invalid":
            return f"is not JSON ({detail['msg']})"
        case "value_error":
            return detail["msg"].removeprefix("Value error, ")
        case "union_tag_invalid":
            tags = str(detail["ctx"]["expected_tags"]).replace("'", "").replace("[", "a ")  # pyright: ignore[reportTypedDictNotRequiredAccess]
            expected = tags.replace("]", "").replace(", ", " or ")
            return f"should be {expected}, found {detail['input']!r}"
        case "literal_error":
            return f"should be {detail['ctx']['expected']}, found {detail['input']!r}"  # pyright: ignore[reportTypedDictNotRequiredAccess]
        case _:
            return f"{detail['msg'].removeprefix('Input ')}, found {detail['input']!r}"


def _suggestion(name: str, location: Sequence[str | int], schema: Mapping[str, Any]) -> str:
    """Return `; did you mean 'steps'?`, or the known keys at that location."""
    names = list(_subschema(location, schema).get("properties", ()))
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known keys are {', '.join(names)}" if names else ""


def _subschema(location: Sequence[str | int], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the part of a JSON schema that describes the value at a location."""
    node = schema
    for step in location:
        if _is_tag(step):
            continue
        node = _resolve(node, schema)
        child = node.get("items") if isinstance(step, int) else node.get("properties", {}).get(step)
        node = child or node.get("additionalProperties") or {}
    return _resolve(node, schema)


def _resolve(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow `$ref`, and in a union choose the object."""
    choices = node.get("anyOf") or node.get("oneOf") or ()
    node = next((choice for choice in choices if "$ref" in choice), node)
    if "$ref" in node:
        return schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node
