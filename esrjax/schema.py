"""Data from outside as frozen dataclasses: nothing unknown, nothing converted, nothing missing."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


def _kind(value: Any) -> str:
    """The tag of what a value looks like; a dataclass was a table."""
    kinds: dict[str, Any] = {"[word]": str, "[number]": (int, float), "[list]": (list, tuple)}
    return next((tag for tag, types in kinds.items() if isinstance(value, types)), "[table]")


# In a union: `Annotated[Annotated[str, WORD] | Annotated[Start, TABLE], BY_KIND]` is checked as
# what it looks like, so that a mistake in a table is not also said to be no word.
BY_KIND = Discriminator(_kind)
WORD, NUMBER, LIST, TABLE = (Tag(f"[{kind}]") for kind in ("word", "number", "list", "table"))


def mistakes(error: ValidationError, kind: TypeAdapter[Any] | None = None) -> list[str]:
    """Every mistake in one line: where it is, what was found, what was expected.

    With `kind`, what the data should have been, an unknown name comes with the nearest known one.
    """
    schema = kind.json_schema() if kind is not None else {}
    return [f"{_path(each)} {_finding(each, schema)}" for each in _causes(error.errors())]


def listing(lines: list[str], noun: str = "mistake") -> str:
    """How many there are, then each on a line of its own."""
    count = f"1 {noun}:" if len(lines) == 1 else f"{len(lines)} {noun}s:"
    return "\n    ".join([count, *lines])


def _causes(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without the lists that are too short only because their items are wrong."""
    places = [each["loc"] for each in errors]
    return [
        each
        for each in errors
        if each["type"] != "too_short" or not any(_within(place, each["loc"]) for place in places)
    ]


def _within(inner: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _path(each: ErrorDetails) -> str:
    return ".".join(str(step) for step in each["loc"] if not _is_mark(step)) or "the whole"


def _is_mark(step: int | str) -> bool:
    """Whether it is pydantic's word for a key of a table, or one of our tags."""
    return isinstance(step, str) and step.startswith("[")


def _finding(each: ErrorDetails, schema: Mapping[str, Any]) -> str:
    match each["type"]:
        case "missing":
            return "is missing"
        case "unexpected_keyword_argument":
            return "is not a known name" + _nearest(str(each["loc"][-1]), each["loc"][:-1], schema)
        case "json_invalid":
            return f"is not JSON ({each['msg']})"
        case "value_error":
            return each["msg"].removeprefix("Value error, ")
        case "union_tag_invalid":
            tags = str(each["ctx"]["expected_tags"]).replace("'", "").replace("[", "a ")  # pyright: ignore[reportTypedDictNotRequiredAccess]
            return (
                f"should be {tags.replace(']', '').replace(', ', ' or ')}, found {each['input']!r}"
            )
        case "literal_error":
            return f"should be {each['ctx']['expected']}, found {each['input']!r}"  # pyright: ignore[reportTypedDictNotRequiredAccess]
        case _:
            return f"{each['msg'].removeprefix('Input ')}, found {each['input']!r}"


def _nearest(name: str, place: Sequence[str | int], schema: Mapping[str, Any]) -> str:
    """`; did you mean 'lr'?`, or the names that are known there."""
    names = list(_at(place, schema).get("properties", ()))
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known are {', '.join(names)}" if names else ""


def _at(place: Sequence[str | int], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a JSON schema that speaks of what lies at `place`."""
    part = schema
    for step in place:
        if _is_mark(step):
            continue
        part = _followed(part, schema)
        inner = part.get("items") if isinstance(step, int) else part.get("properties", {}).get(step)
        part = inner or part.get("additionalProperties") or {}
    return _followed(part, schema)


def _followed(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Through `$ref`, and to the object in a union."""
    choices = part.get("anyOf") or part.get("oneOf") or ()
    part = next((each for each in choices if "$ref" in each), part)
    if "$ref" in part:
        return schema["$defs"][part["$ref"].rsplit("/", 1)[-1]]
    return part
