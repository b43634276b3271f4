"""Rows to rank, from a table, the organisers' results.json or a folder of our result files."""

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.contest import record
from esrjax.contest.record import Result
from esrjax.contest.rules import Rules
from esrjax.errors import UserError
from esrjax.method import Method
from esrjax.schema import NotNegative, Positive, listing, mistakes

T = TypeVar("T")
V = TypeVar("V")

_READ = ConfigDict(extra="ignore", allow_inf_nan=False)  # these files say more than rows need


class UnknownSource(UserError):
    """Nothing that rows can be read from."""


class SourceError(UserError):
    """A table, results.json or folder with something missing or malformed in it."""


@dataclass(frozen=True, kw_only=True, config=_READ)
class Row:
    """The figures of one method. PSNR in dB, runtime in ms, params in 10⁶, flops in 10⁹.

    psnr_valid, psnr_test: on the contest's own sets under its own metric, or None.
    psnr_elsewhere: any other set, with its number of pictures -> PSNR.
    runtime_ms: the one that is scored. device, conditions, spec: where it was timed, how, and
    under which metric the PSNR was measured; None where the source does not say.
    """

    team: str
    method: str
    psnr_valid: Positive | None = None
    psnr_test: Positive | None = None
    psnr_elsewhere: Mapping[str, float] = field(default_factory=dict[str, float])
    runtime_valid_ms: Positive | None = None
    runtime_test_ms: Positive | None = None
    runtime_ms: Positive
    params_m: NotNegative
    flops_g: NotNegative
    device: str | None = None
    conditions: str | None = None
    spec: str | None = None


@dataclass(frozen=True, kw_only=True, config=_READ)
class _Official:
    """What rows need of an entry in the organisers' results.json."""

    valid_ave_psnr: Positive
    test_ave_psnr: Positive
    valid_ave_runtime: Positive
    test_ave_runtime: Positive
    num_parameters: Positive
    flops: Positive


# column of the published table -> field of Row, where the two differ
_COLUMNS = {
    "results_key": "method",
    "psnr_val": "psnr_valid",
    "runtime_val_ms": "runtime_valid_ms",
    "runtime_avg_ms": "runtime_ms",
}


def read(source: str | Path, rules: Rules) -> tuple[Row, ...]:
    """The rows of a CSV table, of the organisers' results.json, or of a folder of result files."""
    path = Path(source)
    if path.is_dir():
        rows = _folder(path, rules)
    elif path.is_file() and path.suffix == ".csv":
        rows = _table(path)
    elif path.is_file() and path.suffix == ".json":
        rows = _official(path, rules)
    else:
        raise _unknown(f"no results at {str(source)!r}")
    if not rows:
        raise _unknown(f"no method in {str(source)!r}")
    return rows


def published(methods: Mapping[str, Method]) -> tuple[Row, ...]:
    """The rows of the published table, from what the methods report of themselves."""
    return tuple(
        Row(
            team=method.team,
            method=name,
            psnr_valid=method.reported.get("psnr_valid"),
            psnr_test=method.reported.get("psnr_test"),
            runtime_ms=method.reported["runtime_ms"],
            params_m=method.reported["params"] / 1e6,
            flops_g=method.reported["macs"] / 1e9,
        )
        for name, method in methods.items()
        if "runtime_ms" in method.reported
    )


def row(result: Result, rules: Rules) -> Row:
    """The row of one of our results; floors apply only to the contest's sets, whole."""
    floors = rules.floors
    official = {
        name: quality.psnr
        for name, quality in result.quality.items()
        if name in ("valid", "test")
        and (quality.pictures, result.spec) == (floors.pictures, floors.spec)
    }
    elsewhere = {
        f"{name} ({quality.pictures})": quality.psnr
        for name, quality in result.quality.items()
        if name not in official
    }
    return Row(
        team=result.team,
        method=result.method,
        psnr_valid=official.get("valid"),
        psnr_test=official.get("test"),
        psnr_elsewhere=elsewhere,
        runtime_ms=result.runtime.median_ms,
        params_m=result.params / 1e6,
        flops_g=result.macs / 1e9,
        device=result.runtime.device,
        conditions=result.runtime.conditions,
        spec=result.spec,
    )


def _unknown(problem: str) -> UnknownSource:
    return UnknownSource(
        problem,
        rule="a .csv table, the organisers' results.json, or a folder of result files",
        remedy="check the path, or measure some methods first",
    )


def _folder(path: Path, rules: Rules) -> tuple[Row, ...]:
    entries = [(file.name, file.read_bytes()) for file in sorted(path.glob("*.json"))]
    return tuple(
        row(result, rules) for _, result in _each(record.FILE.validate_json, entries, path)
    )


def _table(path: Path) -> tuple[Row, ...]:
    """A table like the published one; its scores and ranks are not read but computed anew."""
    with path.open(newline="", encoding="utf-8-sig") as lines:
        entries = [
            (f"line {number}", {_COLUMNS.get(k, k): v for k, v in cells.items() if k and v})
            for number, cells in enumerate(csv.DictReader(lines), start=2)
        ]
    return tuple(read for _, read in _each(_ROW.validate_python, entries, path))


def _official(path: Path, rules: Rules) -> tuple[Row, ...]:
    """The organisers' results.json: `<id>_<name>` -> means of one run, runtime the mean of two."""
    entries = _each(_OFFICIAL.validate_python, _entries(path).items(), path)
    return tuple(_official_row(key, entry, rules) for key, entry in entries)


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


def _official_row(key: str, entry: _Official, rules: Rules) -> Row:
    """Keys are as the program wrote them, among them `009_RFDN_SPAN` and one indented by nine."""
    number, _, name = key.strip().partition("_")
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
    )


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
