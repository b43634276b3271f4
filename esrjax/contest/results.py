"""Readers of rows: a CSV table, the organisers' results.json, or a folder of result files."""

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.contest import record
from esrjax.contest.record import Result
from esrjax.contest.rows import (
    IGNORE_EXTRA,
    ImageSeries,
    Row,
    row_of_baseline_timing,
    row_of_result,
)
from esrjax.contest.rules import Rules
from esrjax.errors import UserError
from esrjax.schema import PositiveFloat, bullet_list, format_errors

T = TypeVar("T")
V = TypeVar("V")


class UnknownSource(UserError):
    """Raised when a path is no table, no results.json and no folder with results."""


class SourceError(UserError):
    """Raised when entries of a table, results.json or folder are malformed or incomplete."""


@dataclass(frozen=True, kw_only=True, config=IGNORE_EXTRA)
class _OfficialEntry:
    """The keys of an entry of the organisers' results.json that rows are made from."""

    valid_ave_psnr: PositiveFloat
    test_ave_psnr: PositiveFloat
    valid_ave_runtime: PositiveFloat
    test_ave_runtime: PositiveFloat
    num_parameters: PositiveFloat
    flops: PositiveFloat
    valid_psnr: tuple[float, ...] = ()
    test_psnr: tuple[float, ...] = ()
    valid_runtime: tuple[float, ...] = ()
    test_runtime: tuple[float, ...] = ()


# Column of the published table -> field of Row, where the two differ.
_FIELD_OF_COLUMN = {
    "results_key": "method",
    "psnr_val": "psnr_valid",
    "runtime_val_ms": "runtime_valid_ms",
    "runtime_avg_ms": "runtime_ms",
}

# Field of Row -> the keys of results.json it is taken from, for the provenance.
_OFFICIAL_KEYS = {
    "psnr_valid": "valid_ave_psnr, the mean of valid_psnr",
    "psnr_test": "test_ave_psnr, the mean of test_psnr",
    "runtime_valid_ms": "valid_ave_runtime, the mean of valid_runtime, one run",
    "runtime_test_ms": "test_ave_runtime, the mean of test_runtime, one run",
    "runtime_ms": "half of valid_ave_runtime + test_ave_runtime, one run",
    "params_m": "num_parameters",
    "flops_g": "flops, as the program's FLOP counter reports them",
}
_FIGURES = tuple(_OFFICIAL_KEYS)


def read_rows(
    source: str | Path, rules: Rules, *, protocol_timing: bool = False
) -> tuple[Row, ...]:
    """Read the rows to rank.

    Args:
        source: A CSV table, the organisers' results.json, or a folder of result files.
        rules: Rules of the challenge: its teams, image names and thresholds.
        protocol_timing: Score the runtime that was measured by the organisers' protocol; applies to
            folders of result files only.

    Raises:
        UnknownSource: `source` is none of these, or has no method.
        SourceError: Entries are malformed, or results lack a runtime by protocol; all are listed.
    """
    path = Path(source)
    if path.is_dir():
        rows = _read_folder(path, rules, protocol_timing)
    elif path.is_file() and path.suffix == ".csv":
        rows = _read_table(path)
    elif path.is_file() and path.suffix == ".json":
        rows = _read_official(path, rules)
    else:
        raise _unknown_source(f"No results at {str(source)!r}")
    if not rows:
        raise _unknown_source(f"No results in {str(source)!r}")
    return rows


def _unknown_source(problem: str) -> UnknownSource:
    return UnknownSource(
        problem,
        rule="results are a .csv table, the organisers' results.json, or a folder that "
        "`esrjax eval -o` wrote",
        remedy="check the path, or write results with `esrjax eval METHOD --data DATASET -o DIR`",
    )


def _read_folder(path: Path, rules: Rules, protocol_timing: bool) -> tuple[Row, ...]:
    files = [(file.name, file.read_bytes()) for file in sorted(path.glob("*.json"))]
    results = dict(_parse_all(record.RESULT_ADAPTER.validate_json, files, path))
    if protocol_timing:
        _check_protocol_timing(results, path)
    baseline = None if protocol_timing else _baseline_row(results.values(), rules)
    rows = [
        row_of_result(result, rules, name, protocol_timing=protocol_timing)
        for name, result in results.items()
    ]
    return (*rows, baseline) if baseline else tuple(rows)


def _baseline_row(results: Iterable[Result], rules: Rules) -> Row | None:
    """Row of the baseline as last timed with another method; None if it has a result itself."""
    name, by_date = rules.baseline.method, sorted(results, key=lambda result: result.created)
    if any(result.method == name for result in by_date):
        return None
    timed = [result for result in by_date if result.baseline and result.baseline.method == name]
    return row_of_baseline_timing(timed[-1]) if timed else None


def _check_protocol_timing(results: Mapping[str, Result], path: Path) -> None:
    missing = [
        f"{name}: no runtime by protocol"
        for name, result in results.items()
        if not result.protocol_timing
    ]
    if missing:
        raise SourceError(
            f"Missing runtimes: {bullet_list(missing, 'result')}",
            rule="with --protocol-timing every result has a runtime by the organisers' protocol",
            location=str(path),
            remedy="measure these again with `esrjax eval ... -o ... --protocol-timing`",
        )


def _read_table(path: Path) -> tuple[Row, ...]:
    """Rows of a table like the published one; its scores and ranks are ignored and recomputed."""
    lines = [
        (line, {_FIELD_OF_COLUMN.get(key, key): value for key, value in cells.items() if value})
        for line, cells in read_csv(path)
    ]
    rows = _parse_all(_ROW.validate_python, lines, path)
    return tuple(
        replace(row, provenance=_table_provenance(f"{path.name}, {line}")) for line, row in rows
    )


def read_csv(path: Path) -> list[tuple[str, dict[str, str]]]:
    """Return `line N` and column -> cell for each line of a CSV table below its header.

    Raises:
        UnknownSource: The file is no CSV table in UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            lines = list(csv.DictReader(text, restval=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unknown_source(f"{path.name} is not a CSV table: {error}") from None
    return [
        (f"line {number}", {key: cell for key, cell in cells.items() if key})
        for number, cells in enumerate(lines, start=2)
    ]


def _table_provenance(line: str) -> dict[str, str]:
    columns = {field: column for column, field in _FIELD_OF_COLUMN.items()}
    return {name: f"{line}, column {columns.get(name, name)}" for name in _FIGURES}


def _read_official(path: Path, rules: Rules) -> tuple[Row, ...]:
    """Rows of the organisers' results.json: `<number>_<name>` -> figures of one run."""
    entries = _parse_all(_OFFICIAL.validate_python, _official_entries(path).items(), path)
    return tuple(_official_row(key.strip(), entry, rules, path.name) for key, entry in entries)


def _official_entries(path: Path) -> Mapping[str, object]:
    try:
        return _OBJECTS.validate_json(path.read_bytes())
    except ValidationError:
        raise UnknownSource(
            f"{path.name} is not the organisers' results.json",
            rule="an object with one object per method",
            location=str(path),
            remedy="to rank result files of esrjax, name their folder instead",
        ) from None


def _official_row(key: str, entry: _OfficialEntry, rules: Rules, file: str) -> Row:
    """Row of one entry. Keys are kept as the program wrote them, `009_RFDN_SPAN` among them."""
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
            "valid": _official_series("valid", entry.valid_psnr, entry.valid_runtime, rules),
            "test": _official_series("test", entry.test_psnr, entry.test_runtime, rules),
        },
        provenance={name: f"{file}, {key}: {_OFFICIAL_KEYS[name]}" for name in _FIGURES},
    )


def _official_series(
    split: str, psnr: tuple[float, ...], runtime_ms: tuple[float, ...], rules: Rules
) -> ImageSeries:
    """Per-image figures of a split; without image names if the rules list another number."""
    names = rules.image_names(split)
    image_names = names if len(names) == len(psnr or runtime_ms) else ()
    # The program runs valid before test, so that only valid starts cold.
    cold_start = split == "valid" and bool(runtime_ms)
    return ImageSeries(
        psnr=psnr, runtime_ms=runtime_ms, image_names=image_names, cold_start=cold_start
    )


def _parse_all(
    parse: Callable[[V], T], entries: Iterable[tuple[str, V]], path: Path
) -> list[tuple[str, T]]:
    """Parse every entry, or raise one error that lists the problems of all of them."""
    parsed: list[tuple[str, T]] = []
    problems: list[str] = []
    for name, entry in entries:
        try:
            parsed.append((name, parse(entry)))
        except ValidationError as error:
            problems += [f"{name.strip()}: {problem}" for problem in format_errors(error)]
    if not problems:
        return parsed
    raise SourceError(
        f"Invalid results: {bullet_list(problems)}",
        rule="every method has a team, PSNR, runtime, parameters and FLOPs; figures are numbers",
        location=str(path),
        remedy="correct the listed entries",
    )


_ROW, _OFFICIAL = TypeAdapter(Row), TypeAdapter(_OfficialEntry)
_OBJECTS = TypeAdapter(dict[str, dict[str, object]])
