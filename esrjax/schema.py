"""Strict validation of external data (TOML, JSON) into frozen dataclasses, by pydantic."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails

from esrjax.errors import list_some, suggest

# Unknown keys, conversions between types, infinities and NaNs are errors.
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

MAX_ERRORS = 100  # that are worded; a file can have a million

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]


def _type_tag(value: Any) -> str:
    """Return the tag of a value's type; what has no tag of its own is a table or its dataclass."""
    match value:
        case str():
            return "[string]"
        case int() | float():
            return "[number]"
        case list() | tuple():
            return "[list]"
        case _:
            return "[table]"


# For unions: `Annotated[Annotated[str, STRING] | Annotated[InitFrom, TABLE], BY_TYPE]` is validated
# as the type that the value has, so that an error in a table is not also reported as "no string".
BY_TYPE = Discriminator(_type_tag)
STRING, NUMBER, LIST, TABLE = (Tag(f"[{name}]") for name in ("string", "number", "list", "table"))


def format_errors(error: ValidationError, schema: Mapping[str, Any] | None = None) -> list[str]:
    """Return a line for every validation error: its path, the value, what was expected.

    Of more than `MAX_ERRORS`, the last line is their number.

    Args:
        error: As pydantic raised it.
        schema: JSON schema of the document; with it, an unknown key comes with the closest known
            one.
    """
    details = _root_causes(error.errors())
    lines = [
        f"{_dotted_path(detail)} {_error_text(detail, schema or {})}"
        for detail in details[:MAX_ERRORS]
    ]
    return lines + [f"and {len(details) - MAX_ERRORS:,} more"] * (len(details) > MAX_ERRORS)


def bullet_list(lines: list[str], noun: str = "error", limit: int | None = None) -> str:
    """Return the number of lines (`2 errors:`), followed by the lines, indented.

    Args:
        lines: The lines.
        noun: What a line is.
        limit: So many lines are listed at most, and the number of others; None for all.
    """
    count = f"1 {noun}:" if len(lines) == 1 else f"{len(lines)} {noun}s:"
    return list_some([count, *lines], 1 + (limit or len(lines)), "\n    ")


def _root_causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Drop the errors of lists that are too short only because their items are invalid."""
    # A location counts as inside of another that it begins with.
    parents = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    return [e for e in errors if e["type"] != "too_short" or e["loc"] not in parents]


def _dotted_path(detail: ErrorDetails) -> str:
    return ".".join(str(step) for step in detail["loc"] if not _is_tag(step)) or "the document"


def _is_tag(step: int | str) -> bool:
    """Return whether it is pydantic's `[key]`, or the tag of a union."""
    return isinstance(step, str) and step.startswith("[")


def _error_text(detail: ErrorDetails, schema: Mapping[str, Any]) -> str:
    message, actual = detail["msg"], f"found {detail['input']!r:.200}"
    context: Mapping[str, Any] = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return "is missing"
        case "unexpected_keyword_argument":
            names = list(subschema(detail["loc"][:-1], schema).get("properties", ()))
            hint = suggest(str(detail["loc"][-1]), names, f"known keys are {', '.join(names)}")
            return f"is not a known key; {hint}" if names else "is not a known key"
        case "json_invalid":
            return f"is not JSON ({message})"
        case "value_error":
            return message.removeprefix("Value error, ")
        case "union_tag_invalid":  # its tags are "'[string]', '[table]'"
            tags = str(context["expected_tags"]).translate(str.maketrans("", "", "'[]"))
            return f"should be a {tags.replace(', ', ' or a ')}, {actual}"
        case "literal_error":
            return f"should be {context['expected']}, {actual}"
        case _:
            return f"{message.removeprefix('Input ')}, {actual}"


def subschema(location: Sequence[str | int], schema: Mapping[str, Any]) -> Mapping[str, Any]:
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
