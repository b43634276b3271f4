"""Data from outside as frozen dataclasses: nothing unknown, nothing converted, nothing missing."""

from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]


def mistakes(error: ValidationError) -> list[str]:
    """Every mistake in one line: where it is, what was expected, what was found."""
    return [f"{_path(each)} {_finding(each)}" for each in error.errors()]


def listing(lines: list[str], noun: str = "mistake") -> str:
    """How many there are, then each on a line of its own."""
    count = f"1 {noun}:" if len(lines) == 1 else f"{len(lines)} {noun}s:"
    return "\n    ".join([count, *lines])


def _path(each: ErrorDetails) -> str:
    return ".".join(map(str, each["loc"])) or "the whole"


def _finding(each: ErrorDetails) -> str:
    match each["type"]:
        case "missing":
            return "is missing"
        case "unexpected_keyword_argument":
            return "is not a known name"
        case "json_invalid":
            return f"is not JSON ({each['msg']})"
        case _:
            return f"{each['msg'].removeprefix('Input ')}, found {each['input']!r}"
