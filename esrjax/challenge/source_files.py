"""Files that rankings are made from: encodings, JSON, dialects of CSV, checks of entries."""

import bisect
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from esrjax.errors import NotFound, UnreadableFile
from esrjax.io import parse_json, read_bytes
from esrjax.schema import MAX_ERRORS, bullet_list, format_errors

T = TypeVar("T")
V = TypeVar("V")

OnNote = Callable[[str], object]  # receives what was assumed or left out, in words

# --- text --------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 with a byte order mark, as spreadsheets write it.

    Raises:
        UnreadableFile: It cannot be read.
        NotFound: It is no text, or has another encoding.
    """
    data = read_bytes(path)
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"byte 0x{data[error.start]:02x} in line {1 + data[: error.start].count(10)}"
        raise no_text(path, problem, "save the file in the encoding UTF-8") from None


def no_text(path: Path, problem: str, remedy: str) -> NotFound:
    """Return the error for a file that is neither a CSV table nor a JSON document."""
    return NotFound(
        f"{path.name} is not text that can be read: {problem}",
        rule="tables are CSV, results are JSON; both are text in UTF-8",
        location=str(path),
        remedy=remedy,
    )


class LineIndex:
    """Places of characters of a text in words, `line 3, column 5`.

    Args:
        text: The text.
    """

    def __init__(self, text: str):
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(self, index: int) -> str:
        """Return the place of a character."""
        line = bisect.bisect(self._starts, index)
        return f"line {line}, column {index - self._starts[line - 1] + 1}"


# --- JSON --------------------------------------------------------------------------------------

_TOKEN = re.compile(r'(?P<string>"(?:[^"\\]|\\.)*")(?P<is_key>\s*:)?|[{}]', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key of a JSON document.

    Attributes:
        name: The key.
        path: Keys of the objects that it is in, outermost first.
        place: Line and column.
    """

    name: str
    path: tuple[str, ...]
    place: str


def json_problems(text: str) -> list[str]:
    """Return what is wrong with a JSON document: where it ends or breaks, and duplicate keys.

    Parsers of JSON take the last one of duplicate keys without a word.
    """
    try:
        parse_json(text)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text.rstrip())
        where = f"line {error.lineno}, column {error.colno}"
        return [f"{where}: the document is cut off" if is_cut else f"{where}: {error.msg}"]
    except ValueError as error:  # thousands of digits, or of brackets
        return [f"it is not JSON that can be read: {error}"]
    keys = json_keys(text)
    return [
        f"{'.'.join((*first.path, first.name))} is a duplicate key: {first.place}, and {key.place}"
        for first, key in _repetitions(keys)
    ]


def _repetitions(keys: Iterable[tuple[int, Key]]) -> list[tuple[Key, Key]]:
    """The first and each further occurrence of a key in one object."""
    firsts: dict[tuple[int, str], Key] = {}
    return [
        (first, key)
        for number, key in keys
        if (first := firsts.setdefault((number, key.name), key)) is not key
    ]


def json_keys(text: str) -> list[tuple[int, Key]]:
    """Return every key of a valid JSON document, with the number of its object."""
    keys: list[tuple[int, Key]] = []
    objects: list[tuple[int, tuple[str, ...]]] = []  # that are open: number, path
    num_objects, last, lines = 0, (), LineIndex(text)
    for token in _TOKEN.finditer(text):
        if token[0] == "{":
            num_objects += 1
            objects.append((num_objects, last))
        elif token[0] == "}":
            last = objects.pop()[1]
        elif token["is_key"]:
            number, path = objects[-1]
            string = token["string"]
            name = json.loads(string) if "\\" in string else string[1:-1]
            keys.append((number, Key(name=name, path=path, place=lines.place(token.start()))))
            last = (*path, name)
    return keys


# --- CSV ---------------------------------------------------------------------------------------

_DELIMITERS = (",", ";", "\t")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_DECIMAL_POINT = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
TEXT_COLUMNS = ("team", "method", "results_key")
Line = tuple[str, dict[str, str]]  # `line N`, column -> cell


def read_csv(path: Path, on_note: OnNote = lambda _: None) -> list[Line]:
    """Return `line N` and column -> cell for each line of a CSV table below its header.

    The delimiter is that of the header: a comma, a semicolon or a tab. Where it is no comma,
    decimal commas are converted, and noted.

    Raises:
        NotFound: The file is no text.
        UnreadableFile: A line does not fit the header; lists all.
    """
    text = read_text(path)
    first = next((line for line in text.split("\n") if line.strip()), "")
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        where = f"line {reader.line_num}: {error}"
        raise no_text(path, where, "check the quotes in that line") from None
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        return []
    (_, header), *body = lines
    if problems := _structure_problems(header, body):
        raise _invalid_table(path, problems)
    table = [
        (f"line {n}", {k: cell for k, cell in zip(header, cells, strict=False) if k})
        for n, cells in body
    ]
    return table if delimiter == "," else _convert_decimal_commas(table, path, on_note)


def _structure_problems(header: Sequence[str], body: Iterable[tuple[int, list[str]]]) -> list[str]:
    duplicates = sorted(name for name, count in Counter(header).items() if name and count > 1)
    problems = [f"the header has the column {name!r} twice" for name in duplicates]
    for number, cells in body:
        if len(cells) < len(header) or any(cells[len(header) :]):
            problems.append(f"line {number} has {len(cells)} cells, the header {len(header)}")
        elif nameless := [c for name, c in zip(header, cells, strict=False) if c and not name]:
            problems.append(f"line {number}: {nameless[0]!r} is in a column without a name")
    return problems


def _convert_decimal_commas(table: list[Line], path: Path, on_note: OnNote) -> list[Line]:
    figures = [
        (f"{line}, {column}: {cell!r}", cell)
        for line, cells in table
        for column, cell in cells.items()
        if column not in TEXT_COLUMNS
    ]
    commas = [where for where, cell in figures if _DECIMAL_COMMA.fullmatch(cell)]
    points = [where for where, cell in figures if _DECIMAL_POINT.fullmatch(cell)]
    if commas and points:
        raise _invalid_table(
            path, [f"numbers with both a comma and a point: {commas[0]}, {points[0]}"]
        )
    if not commas:
        return table
    on_note(f"{path.name}: commas in numbers are decimal commas, as in {commas[0]}")
    return [
        (
            line,
            {
                column: cell.replace(",", ".")
                if column not in TEXT_COLUMNS and _DECIMAL_COMMA.fullmatch(cell)
                else cell
                for column, cell in cells.items()
            },
        )
        for line, cells in table
    ]


def _invalid_table(path: Path, problems: list[str]) -> UnreadableFile:
    return UnreadableFile(
        f"Invalid table: {bullet_list(problems)}",
        rule="every line has one cell for each column of the header, and columns have different "
        "names; numbers have a decimal point, or all of them a decimal comma",
        location=str(path),
        remedy="correct the listed lines; quote a cell that contains the delimiter",
    )


# --- entries -----------------------------------------------------------------------------------


class Contradiction(Exception):
    """Raised when an entry contradicts itself; its argument is a list of the problems."""


def mean_problems(
    name: str, mean: float, values: Iterable[Any], rel_tol: float = 0.0, *, abs_tol: float = 0.0
) -> list[str]:
    """Return a problem if a mean is not that of its values, up to rounding."""
    values = list(values)
    actual = math.fsum(values) / len(values) if values else mean
    if math.isclose(actual, mean, rel_tol=rel_tol, abs_tol=abs_tol):
        return []
    return [f"{name} is {mean:g}, the mean of its {len(values)} values is {actual:g}"]


def parse_all(
    parse: Callable[[V], T], entries: Iterable[tuple[str, V]], path: Path
) -> list[tuple[str, T]]:
    """Parse every entry, or raise one error that lists the problems, up to `MAX_ERRORS` or so."""
    parsed: list[tuple[str, T]] = []
    problems: list[str] = []
    for name, entry in entries:
        if len(problems) > MAX_ERRORS:
            break
        try:
            parsed.append((name, parse(entry)))
        except Contradiction as error:
            problems += [f"{name.strip()}: {problem}" for problem in error.args[0]]
        except ValidationError as error:
            problems += [f"{name.strip()}: {problem}" for problem in sorted(format_errors(error))]
        except OverflowError:
            problems.append(f"{name.strip()}: a figure is too large for a float")
    if problems:
        raise invalid_results(problems, path)
    return parsed


def invalid_results(problems: list[str], path: Path) -> UnreadableFile:
    """Return the error that lists what is wrong in a file or folder of results."""
    return UnreadableFile(
        f"Invalid results: {bullet_list(problems)}",
        rule="every method has a team, PSNR, runtime, parameters and FLOPs; figures are finite "
        "numbers, a mean is that of its values, and a key is unique",
        location=str(path),
        remedy="correct the listed entries",
    )
