"""Rows of a ranking: the figures of one method, and where each figure comes from."""

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from esrjax.challenge import record
from esrjax.challenge.record import DatasetMetrics, ProtocolTiming, Result
from esrjax.challenge.rules import Rules
from esrjax.errors import NotFound, UnreadableFile
from esrjax.method import Method
from esrjax.schema import NonNegativeFloat, PositiveFloat, bullet_list, format_errors

# Sources have more columns and keys than a row needs.
IGNORE_EXTRA = ConfigDict(extra="ignore", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, config=IGNORE_EXTRA)
class ImageSeries:
    """Per-image figures of one dataset, in its order; an empty tuple where they are unknown.

    Attributes:
        psnr: PSNR of each image, dB.
        runtime_ms: Runtime of each image, ms.
        image_names: Name of each image.
        cold_start: Whether the first runtime was the first of its process, start-up cost included.
    """

    psnr: tuple[float, ...] = ()
    runtime_ms: tuple[float, ...] = ()
    image_names: tuple[str, ...] = ()
    cold_start: bool = False


@dataclass(frozen=True, kw_only=True, config=IGNORE_EXTRA)
class Row:
    """The figures of one method.

    Attributes:
        team: Name of the team.
        method: Name of the method.
        psnr_valid: PSNR on the challenge's validation split with its metric, dB.
        psnr_test: PSNR on the challenge's test split with its metric, dB.
        psnr_other: Any other dataset, with its number of images -> PSNR, dB.
        runtime_valid_ms: Mean runtime on the validation split, ms.
        runtime_test_ms: Mean runtime on the test split, ms.
        runtime_ms: The runtime that is scored, ms.
        baseline_ms: Runtime of the baseline where it was timed interleaved with this method, ms.
        protocol_ms: Dataset -> mean runtime over its images, timed as the organisers do, ms.
        params_m: Parameters, 10⁶.
        flops_g: FLOPs, 10⁹ multiply-adds.
        device: Device of the runtime; None if the source does not tell.
        conditions: Shape, dtype and precision of the timed pass; None if the source does not tell.
        spec: Metric specification of the PSNR; None if the source does not tell.
        series: Dataset -> per-image figures.
        provenance: Field -> where its figure comes from.
    """

    team: str
    method: str
    psnr_valid: PositiveFloat | None = None
    psnr_test: PositiveFloat | None = None
    psnr_other: Mapping[str, float] = field(default_factory=dict[str, float])
    runtime_valid_ms: PositiveFloat | None = None
    runtime_test_ms: PositiveFloat | None = None
    runtime_ms: PositiveFloat
    baseline_ms: PositiveFloat | None = None
    protocol_ms: Mapping[str, float] = field(default_factory=dict[str, float])
    params_m: NonNegativeFloat
    flops_g: NonNegativeFloat
    device: str | None = None
    conditions: str | None = None
    spec: str | None = None
    series: Mapping[str, ImageSeries] = field(default_factory=dict[str, ImageSeries])
    provenance: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)


def published_rows(methods: Mapping[str, Method]) -> tuple[Row, ...]:
    """Return the rows of the published table, from the `reported` figures of methods."""
    return tuple(
        Row(
            team=method.team,
            method=name,
            psnr_valid=method.reported.get("psnr_valid"),
            psnr_test=method.reported.get("psnr_test"),
            runtime_ms=method.reported["runtime_ms"],
            params_m=method.reported["params"] / 1e6,
            flops_g=method.reported["macs"] / 1e9,
            provenance=dict.fromkeys(_COLUMNS, f"reported by the plugin of {name}"),
        )
        for name, method in methods.items()
        if "runtime_ms" in method.reported
    )


_COLUMNS = ("psnr_valid", "psnr_test", "runtime_ms", "params_m", "flops_g")


def row_of_result(
    result: Result, rules: Rules, origin: str = "measured", *, protocol_timing: bool = False
) -> Row:
    """Return the row of one result.

    Args:
        result: Content of a result file.
        rules: Rules of the challenge; PSNR counts as that of a split only if it was computed over
            all of its images, with the metric of the thresholds.
        origin: Where the result comes from, for the provenance; the name of its file.
        protocol_timing: Score the mean over images, each timed once, instead of the median runtime
            at one image size.
    """
    official = _official_psnr(result, rules)
    others = {
        f"{name} ({quality.num_images})": quality.psnr
        for name, quality in result.quality.items()
        if name not in official
    }
    means = {name: timing.mean_ms for name, timing in result.protocol_timing.items()}
    baseline_ms = result.baseline and result.baseline.runtime.median_ms
    return Row(
        team=result.team,
        method=result.method,
        psnr_valid=official.get("valid"),
        psnr_test=official.get("test"),
        psnr_other=others,
        runtime_ms=fmean(means.values()) if protocol_timing else result.runtime.median_ms,
        baseline_ms=None if protocol_timing else baseline_ms,
        protocol_ms=means,
        params_m=result.params / 1e6,
        flops_g=result.macs / 1e9,
        device=result.runtime.device,
        conditions=_protocol_conditions(means) if protocol_timing else result.runtime.conditions,
        spec=result.spec,
        series=_series(result),
        provenance=_provenance(result, origin, protocol_timing),
    )


def _official_psnr(result: Result, rules: Rules) -> dict[str, float]:
    """PSNR on the challenge's own splits: over all images, with the metric of the thresholds."""
    thresholds = rules.psnr_thresholds
    return {
        name: quality.psnr
        for name, quality in result.quality.items()
        if name in ("valid", "test")
        and (quality.num_images, result.spec) == (thresholds.num_images, thresholds.spec)
    }


def row_of_baseline_timing(result: Result) -> Row | None:
    """Return the row of the baseline that a result was timed with; its PSNR is unknown."""
    baseline = result.baseline
    return baseline and Row(
        team=baseline.team,
        method=baseline.method,
        runtime_ms=baseline.runtime.median_ms,
        params_m=baseline.params / 1e6,
        flops_g=baseline.macs / 1e9,
        device=baseline.runtime.device,
        conditions=baseline.runtime.conditions,
        spec=result.spec,
        provenance=dict.fromkeys(_COLUMNS, f"measured interleaved with {result.method}, untrained"),
    )


def _protocol_conditions(means: Mapping[str, float]) -> str:
    return f"the organisers' protocol, each image of {', '.join(sorted(means))} once"


def _series(result: Result) -> dict[str, ImageSeries]:
    """Per-image figures of the datasets that have some: PSNR, runtime by protocol, or both."""
    series = {
        name: _image_series(quality, result.protocol_timing.get(name))
        for name, quality in result.quality.items()
    }
    return {name: figures for name, figures in series.items() if figures.image_names}


def _image_series(quality: DatasetMetrics, timing: ProtocolTiming | None) -> ImageSeries:
    psnr_by_name, ms_by_name = quality.psnr_per_image or {}, timing.ms_per_image if timing else {}
    names = tuple(psnr_by_name or ms_by_name)
    psnr, runtime_ms = _in_order(psnr_by_name, names), _in_order(ms_by_name, names)
    return ImageSeries(
        psnr=psnr, runtime_ms=runtime_ms, image_names=names, cold_start=bool(runtime_ms)
    )


def _in_order(values: Mapping[str, float], names: tuple[str, ...]) -> tuple[float, ...]:
    """The values in the order of `names`; none if one is missing."""
    return tuple(values[name] for name in names) if values.keys() >= set(names) else ()


def _provenance(result: Result, origin: str, protocol_timing: bool) -> dict[str, str]:
    """Field -> file, way of measuring, device, date, versions and hash of the weights."""
    weights = f"weights sha256 {(result.weights_sha256 or 'unknown')[:16]}"
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    timing, source = result.runtime, f"{result.created}, {versions}, {weights}"
    cost = f"{origin}: counted from the network as built, {source}"
    quality = f"{origin}: mean over the images of a dataset by the metric {result.spec!r}, {source}"
    median = (
        f"{origin}: median of {timing.num_runs} runs, {timing.conditions}, on {timing.device}"
        f"{f', driver {timing.driver}' if timing.driver else ''}"
        f"{f', implementation {timing.implementation}' if timing.implementation else ''}, {source}"
    )
    protocol = f"{origin}: mean over the images of a dataset, each run once in order, {source}"
    return {
        **dict.fromkeys(("psnr_valid", "psnr_test", "psnr_other"), quality),
        "runtime_ms": protocol if protocol_timing else median,
        "baseline_ms": median,
        "protocol_ms": protocol,
        **dict.fromkeys(("params_m", "flops_g"), cost),
    }


# --------------------------------------------------------------------------------------------------
# Readers of rows: a CSV table, the organisers' results.json, or a folder of result files.
# --------------------------------------------------------------------------------------------------


T = TypeVar("T")
V = TypeVar("V")


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
        NotFound: `source` is none of these, or has no method.
        UnreadableFile: Entries are malformed, or results lack a protocol runtime; lists all.
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


def _unknown_source(problem: str) -> NotFound:
    return NotFound(
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
        raise UnreadableFile(
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
        NotFound: The file is no CSV table in UTF-8.
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
        raise NotFound(
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
    raise UnreadableFile(
        f"Invalid results: {bullet_list(problems)}",
        rule="every method has a team, PSNR, runtime, parameters and FLOPs; figures are numbers",
        location=str(path),
        remedy="correct the listed entries",
    )


_ROW, _OFFICIAL = TypeAdapter(Row), TypeAdapter(_OfficialEntry)
_OBJECTS = TypeAdapter(dict[str, dict[str, object]])
