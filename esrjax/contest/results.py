"""Rows to rank, from a table, the organisers' results.json or a folder of our result files."""

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.contest import record
from esrjax.contest.record import Result
from esrjax.contest.rows import READ, Row, Series, companion, measured
from esrjax.contest.rules import Rules
from esrjax.errors import UserError
from esrjax.schema import Positive, listing, mistakes

T = TypeVar("T")
V = TypeVar("V")


class UnknownSource(UserError):
    """Nothing that rows can be read from."""


class SourceError(UserError):
    """A table, results.json or folder with something missing or malformed in it."""


@dataclass(frozen=True, kw_only=True, config=READ)
class _Official:
    """What rows need of an entry in the organisers' results.json."""

    valid_ave_psnr: Positive
    test_ave_psnr: Positive
    valid_ave_runtime: Positive
    test_ave_runtime: Positive
    num_parameters: Positive
    flops: Positive
    valid_psnr: tuple[float, ...] = ()
    test_psnr: tuple[float, ...] = ()
    valid_runtime: tuple[float, ...] = ()
    test_runtime: tuple[float, ...] = ()


# column of the published table -> field of Row, where the two differ
_COLUMNS = {
    "results_key": "method",
    "psnr_val": "psnr_valid",
    "runtime_val_ms": "runtime_valid_ms",
    "runtime_avg_ms": "runtime_ms",
}

# field of Row -> what the organisers' program wrote of it, in one run
_SAYS = {
    "psnr_valid": "valid_ave_psnr, the mean of valid_psnr",
    "psnr_test": "test_ave_psnr, the mean of test_psnr",
    "runtime_valid_ms": "valid_ave_runtime, the mean of valid_runtime, one run",
    "runtime_test_ms": "test_ave_runtime, the mean of test_runtime, one run",
    "runtime_ms": "half of valid_ave_runtime + test_ave_runtime, one run",
    "params_m": "num_parameters",
    "flops_g": "flops, as the program's counter saw them",
}
_FIGURES = tuple(_SAYS)


def read(source: str | Path, rules: Rules, *, harness: bool = False) -> tuple[Row, ...]:
    """The rows of a CSV table, of the organisers' results.json, or of a folder of result files.

    harness: of result files, score the runtime that was taken as the organisers take it.
    """
    path = Path(source)
    if path.is_dir():
        rows = _folder(path, rules, harness)
    elif path.is_file() and path.suffix == ".csv":
        rows = _table(path)
    elif path.is_file() and path.suffix == ".json":
        rows = _official(path, rules)
    else:
        raise _unknown(f"no results at {str(source)!r}")
    if not rows:
        raise _unknown(f"no method in {str(source)!r}")
    return rows


def _unknown(problem: str) -> UnknownSource:
    return UnknownSource(
        problem,
        rule="a .csv table, the organisers' results.json, or a folder of result files",
        remedy="check the path, or measure some methods first",
    )


def _folder(path: Path, rules: Rules, harness: bool) -> tuple[Row, ...]:
    entries = [(file.name, file.read_bytes()) for file in sorted(path.glob("*.json"))]
    found = dict(_each(record.FILE.validate_json, entries, path))
    if harness:
        _require_harness(found, path)
    beside = None if harness else _baseline_of(found.values(), rules)
    rows = [measured(result, rules, name, harness=harness) for name, result in found.items()]
    return (*rows, beside) if beside else tuple(rows)


def _baseline_of(found: Iterable[Result], rules: Rules) -> Row | None:
    """Where no result is the baseline's, the latest of those timed in turn with the others."""
    name, every = rules.baseline.method, sorted(found, key=lambda result: result.created)
    if any(result.method == name for result in every):
        return None
    held = [result for result in every if result.baseline and result.baseline.method == name]
    return companion(held[-1]) if held else None


def _require_harness(found: Mapping[str, Result], path: Path) -> None:
    without = [f"{name}: no such runtime" for name, result in found.items() if not result.harness]
    if without:
        raise SourceError(
            f"the results have {listing(without, 'gap')}",
            rule="with --harness every method has a runtime taken as the organisers take it",
            place=str(path),
            remedy="measure these again by `esrjax eval ... -o ... --harness`",
        )


def _table(path: Path) -> tuple[Row, ...]:
    """A table like the published one; its scores and ranks are not read but computed anew."""
    entries = [
        (line, {_COLUMNS.get(key, key): value for key, value in cells.items() if value})
        for line, cells in lines(path)
    ]
    found = _each(_ROW.validate_python, entries, path)
    return tuple(replace(row, provenance=_cells(f"{path.name}, {line}")) for line, row in found)


def lines(path: Path) -> list[tuple[str, dict[str, str]]]:
    """`line N` and column -> cell, for every line of a table below its heading."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            held = list(csv.DictReader(text, restval=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unknown(f"{path.name} is not a table: {error}") from None
    return [
        (f"line {number}", {key: cell for key, cell in cells.items() if key})
        for number, cells in enumerate(held, start=2)
    ]


def _cells(line: str) -> dict[str, str]:
    columns = {field: column for column, field in _COLUMNS.items()}
    return {name: f"{line}, column {columns.get(name, name)}" for name in _FIGURES}


def _official(path: Path, rules: Rules) -> tuple[Row, ...]:
    """The organisers' results.json: `<id>_<name>` -> means of one run, runtime the mean of two."""
    entries = _each(_OFFICIAL.validate_python, _entries(path).items(), path)
    return tuple(_official_row(key.strip(), entry, rules, path.name) for key, entry in entries)


def _entries(path: Path) -> Mapping[str, object]:
    try:
        return _OBJECTS.validate_json(path.read_bytes())
    except ValidationError:
        raise UnknownSource(
            f"{path.name} is not the organisers' results.json",
            rule="an object with one object per method",
            place=str(path),
            remedy="our own result files are ranked by naming their folder",
        ) from None


def _official_row(key: str, entry: _Official, rules: Rules, file: str) -> Row:
    """Keys are as the program wrote them, among them `009_RFDN_SPAN`."""
    number, _, name = key.partition("_")
    return Row(
        team=rules.teams.get(number.lstrip("0").zfill(2), name or number),
        method=name or number,
        psnr_valid=entry.valid_ave_psnr,
        psnr_test=entry.test_ave_psnr,
        runtime_valid_ms=entry.valid_ave_runtime,
        runtime_test_ms=entry.test_ave_runtime,
        runtime_ms=(entry.valid_ave_runtime + entry.test_ave_runtime) / 2,
        params_m=entry.num_parameters,
        flops_g=entry.flops,
        series={
            "valid": _listed("valid", entry.valid_psnr, entry.valid_runtime, rules),
            "test": _listed("test", entry.test_psnr, entry.test_runtime, rules),
        },
        provenance={name: f"{file}, {key}: {_SAYS[name]}" for name in _FIGURES},
    )


def _listed(name: str, psnr: tuple[float, ...], times: tuple[float, ...], rules: Rules) -> Series:
    """The lists of one set; pictures go without names where the rules know another number."""
    pictures = rules.pictures(name)
    known = pictures if len(pictures) == len(psnr or times) else ()
    cold = name == "valid" and bool(times)  # the program runs valid first, then test
    return Series(psnr=psnr, runtime_ms=times, pictures=known, cold=cold)


def _each(
    parse: Callable[[V], T], entries: Iterable[tuple[str, V]], path: Path
) -> list[tuple[str, T]]:
    """Every entry parsed, or one error with the mistakes of them all."""
    good: list[tuple[str, T]] = []
    found: list[str] = []
    for name, entry in entries:
        try:
            good.append((name, parse(entry)))
        except ValidationError as error:
            found += [f"{name.strip()}: {mistake}" for mistake in mistakes(error)]
    if not found:
        return good
    raise SourceError(
        f"the results have {listing(found)}",
        rule="team, PSNR, runtime, params and flops of every method, as numbers",
        place=str(path),
        remedy="mend what is listed",
    )


_ROW, _OFFICIAL = TypeAdapter(Row), TypeAdapter(_Official)
_OBJECTS = TypeAdapter(dict[str, dict[str, object]])
