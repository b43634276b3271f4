"""Rows of a ranking: the figures of each method, and where each figure comes from.

They are made from result files, from a CSV table like the published one, from the organisers'
results.json, or from the `reported` figures of methods.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from esrjax.challenge import record
from esrjax.challenge.record import (
    IGNORE_EXTRA,
    RESULT_ADAPTER,
    BaselineTiming,
    Entries,
    Result,
    ResultsEntry,
    WeightsOrigin,
)
from esrjax.challenge.rules import Rules
from esrjax.challenge.source_files import (
    Contradiction,
    OnNote,
    json_keys,
    json_problems,
    mean_problems,
    parse_all,
    read_csv,
    read_text,
)
from esrjax.errors import NotFound, UnreadableFile, list_some
from esrjax.method import Method
from esrjax.schema import bullet_list


def _check_name(name: str) -> str:
    if not name.strip() or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name):
        raise ValueError(f"should be a name without control characters, found {name!r}")
    return name


Name = Annotated[str, AfterValidator(_check_name)]
# Ratios of figures within these limits, and their scores' logarithms, are finite.
Figure = Annotated[float, Field(ge=1e-9, le=1e12)]
FigureOrZero = Annotated[float, Field(ge=0, le=1e12)]
Psnr = Annotated[float, Field(gt=0, le=200)]  # of 8-bit images that differ, dB

# Column of the published table -> field of Row.
FIGURE_COLUMNS = {
    "psnr_val": "psnr_valid",
    "psnr_test": "psnr_test",
    "runtime_val_ms": "runtime_valid_ms",
    "runtime_test_ms": "runtime_test_ms",
    "runtime_avg_ms": "runtime_ms",
    "params_m": "params_m",
    "flops_g": "flops_g",
}
_FIELDS = {**FIGURE_COLUMNS, "results_key": "method"}  # column -> field of Row
_TABLE_FIELDS = {"team", "method", *FIGURE_COLUMNS.values()}
_OTHER_COLUMNS = ("results_key", "ranked")  # and score_*, rank_*: known, and recomputed
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
        team: Name of the team, or `credited_team` where the weights are not the team's.
        method: Name of the method, or the label of one of its checkpoints.
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
        weights_origin: Whose weights it has; None if the source does not tell.
        weights_sha256: Hash of the checkpoint; None if the source does not tell.
        images_sha256: Dataset, with its number of images -> hash of these, where the source tells.
        measured_by: Who measured runtime and cost; None if the source does not tell.
        series: Dataset -> per-image figures.
        provenance: Field -> where its figure comes from.
    """

    team: Name
    method: Name
    psnr_valid: Psnr | None = None
    psnr_test: Psnr | None = None
    psnr_other: Mapping[str, Psnr] = field(default_factory=dict[str, float])
    runtime_valid_ms: Figure | None = None
    runtime_test_ms: Figure | None = None
    runtime_ms: Figure
    baseline_ms: Figure | None = None
    protocol_ms: Mapping[str, Figure] = field(default_factory=dict[str, float])
    params_m: FigureOrZero
    flops_g: FigureOrZero
    device: str | None = None
    conditions: str | None = None
    spec: str | None = None
    weights_origin: WeightsOrigin | None = None
    weights_sha256: str | None = None
    images_sha256: Mapping[str, str] = field(default_factory=dict[str, str])
    measured_by: str | None = None
    series: Mapping[str, ImageSeries] = field(default_factory=dict[str, ImageSeries])
    provenance: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)

    @property
    def psnr_by_split(self) -> dict[str, float]:
        """Split of the challenge (`valid`, `test`) -> PSNR, dB, where it is known."""
        psnrs = {"valid": self.psnr_valid, "test": self.psnr_test}
        return {split: psnr for split, psnr in psnrs.items() if psnr is not None}


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
            provenance=dict.fromkeys(_OFFICIAL_KEYS, f"reported by the plugin of {name}"),
        )
        for name, method in methods.items()
        if "runtime_ms" in method.reported
    )


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
    # PSNR on the challenge's own splits: over all images, with the metric of the thresholds.
    thresholds = rules.psnr_thresholds
    official = {
        name: quality.psnr
        for name, quality in result.quality.items()
        if name in thresholds.by_split
        and (quality.num_images, result.spec) == (thresholds.num_images, thresholds.spec)
    }
    row = replace(
        _row_of_timing(result),
        team=credited_team(result.team, result.weights_origin),
        method=result.name,
        weights_origin=result.weights_origin,
        weights_sha256=result.weights_sha256,
        psnr_valid=official.get("valid"),
        psnr_test=official.get("test"),
        psnr_other={
            f"{name} ({quality.num_images})": quality.psnr
            for name, quality in result.quality.items()
            if name not in official
        },
        images_sha256={
            f"{name} ({quality.num_images})": quality.images_sha256
            for name, quality in result.quality.items()
            if quality.images_sha256
        },
        baseline_ms=result.baseline and result.baseline.runtime.median_ms,
        protocol_ms={name: timing.mean_ms for name, timing in result.protocol_timing.items()},
        spec=result.spec,
        series=_series(result),
        provenance=_provenance(result, origin, protocol_timing),
    )
    if not protocol_timing:
        return row
    datasets = ", ".join(sorted(row.protocol_ms))
    return replace(
        row,
        runtime_ms=fmean(row.protocol_ms.values()),
        baseline_ms=None,
        conditions=f"the organisers' protocol, each image of {datasets} once",
    )


def credited_team(team: str, origin: WeightsOrigin | None) -> str:
    """Return whose entry a row is: the team's, or `own weights (TEAM)` of the team's method."""
    return team if origin in (None, "official") else f"{origin} weights ({team})"


def _row_of_timing(timed: Result | BaselineTiming) -> Row:
    """Row with cost and median runtime only."""
    return Row(
        team=timed.team,
        method=timed.method,
        runtime_ms=timed.runtime.median_ms,
        params_m=timed.params / 1e6,
        flops_g=timed.macs / 1e9,
        device=timed.runtime.device,
        conditions=timed.runtime.conditions,
    )


def _series(result: Result) -> dict[str, ImageSeries]:
    """Per-image figures of the datasets that have some: PSNR, runtime by protocol, or both."""
    series: dict[str, ImageSeries] = {}
    for dataset, quality in result.quality.items():
        timing = result.protocol_timing.get(dataset)
        psnr_by_name = quality.psnr_per_image or {}
        ms_by_name = timing.ms_per_image if timing else {}
        names = tuple(psnr_by_name or ms_by_name)
        psnr, runtime_ms = (
            tuple(by_name[name] for name in names) if by_name.keys() >= set(names) else ()
            for by_name in (psnr_by_name, ms_by_name)
        )
        if names:
            series[dataset] = ImageSeries(
                psnr=psnr, runtime_ms=runtime_ms, image_names=names, cold_start=bool(runtime_ms)
            )
    return series


def _provenance(result: Result, origin: str, protocol_timing: bool) -> dict[str, str]:
    """Field -> file, way of measuring, device, date, versions and hash of the weights."""
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    origin_text = f"{result.weights_origin} " if result.weights_origin else ""
    weights = f"{origin_text}weights sha256 {(result.weights_sha256 or 'unknown')[:16]}"
    source = f"{result.created}, {versions}, {weights}"
    timing, mean = result.runtime, f"{origin}: mean over the images of a dataset"
    known = {"driver": timing.driver, "implementation": timing.implementation}
    device = ", ".join(
        [timing.device, *(f"{key} {value}" for key, value in known.items() if value)]
    )
    median = (
        f"{origin}: median of {timing.num_runs} runs, {timing.conditions}, on {device}, {source}"
    )
    protocol = f"{mean}, each run once in order, {source}"
    psnr_fields, cost_fields = ("psnr_valid", "psnr_test", "psnr_other"), ("params_m", "flops_g")
    return {
        **dict.fromkeys(psnr_fields, f"{mean} by the metric {result.spec!r}, {source}"),
        "runtime_ms": protocol if protocol_timing else median,
        "baseline_ms": median,
        "protocol_ms": protocol,
        **dict.fromkeys(cost_fields, f"{origin}: counted from the network as built, {source}"),
    }


def read_rows(
    source: str | Path,
    rules: Rules,
    *,
    protocol_timing: bool = False,
    on_note: OnNote = lambda _: None,
) -> tuple[Row, ...]:
    """Read the rows to rank.

    Args:
        source: A CSV table, the organisers' results.json, or a folder of result files and of
            entries (`TEAM.json` or `TEAM/results.json`, in the form of results.json).
        rules: Rules of the challenge: its teams, image names and thresholds.
        protocol_timing: Score the runtime that was measured by the organisers' protocol; applies to
            folders of result files only.
        on_note: Receives what was assumed or not read, such as decimal commas.

    Raises:
        NotFound: `source` is none of these, or has no method.
        UnreadableFile: Entries are malformed, duplicate or contradict themselves, or results lack a
            protocol runtime; lists all.
    """
    path, rows = Path(source), ()
    if os.path.isdir(path):
        rows = _read_folder(path, rules, protocol_timing, on_note)
    elif os.path.isfile(path) and path.suffix.lower() == ".csv":
        rows = _read_table(path, on_note)
    elif os.path.isfile(path) and path.suffix.lower() == ".json":
        rows = _read_official(path, rules, on_note)
    if not rows:
        raise _unknown_source(f"No results in {str(source)!r}")
    return rows


def _unknown_source(problem: str) -> NotFound:
    return NotFound(
        problem,
        rule="results are a .csv table, the organisers' results.json, or a folder of what "
        "`esrjax eval -o`, `submit build` or `submit score` wrote",
        remedy="check the path, or write results with `esrjax eval METHOD --data DATASET -o DIR`",
    )


def _read_folder(
    path: Path, rules: Rules, protocol_timing: bool, on_note: OnNote
) -> tuple[Row, ...]:
    """Rows of result files, and of entries: `TEAM.json` or `TEAM/results.json`."""
    files, others = record.result_files(path)
    if others:
        on_note(f"not read, as result files end with .json: {list_some(others)}")
    texts = {name: read_text(file) for name, file in files.items()}
    entry_texts = {name: text for name, text in texts.items() if record.is_entries(text)}
    result_texts = [(name, text) for name, text in texts.items() if name not in entry_texts]
    results = dict(parse_all(_parse_result, result_texts, path))
    untimed = [name for name, result in results.items() if not result.protocol_timing]
    if protocol_timing and untimed:
        problems = [f"{name}: no runtime by protocol" for name in untimed]
        raise UnreadableFile(
            f"Missing runtimes: {bullet_list(problems, 'result')}",
            rule="with --protocol-timing every result has a runtime by the organisers' protocol",
            location=str(path),
            remedy="measure these again with `esrjax eval ... -o ... --protocol-timing`",
        )

    def row_of(item: tuple[str, Result]) -> Row:
        return row_of_result(item[1], rules, item[0], protocol_timing=protocol_timing)

    rows = parse_all(row_of, ((name, (name, result)) for name, result in results.items()), path)
    for name in sorted(entry_texts):
        entries = record.parse_entries(entry_texts[name], files[name])
        _note_sizes(entries, rules, name, on_note)
        rows += _rows_of_entries(entries, name, files[name], rules)
    _check_unique(rows, path)
    baselines = [] if protocol_timing else _baseline_rows(results.values(), rules)
    return (*(row for _, row in rows), *baselines)


def _rows_of_entries(
    entries: Entries, place: str, file: Path, rules: Rules
) -> list[tuple[str, Row]]:
    """`PLACE, KEY` and the row of each entry; a team without a number is called as its file."""
    team = record.name_of_place(place)

    def row_of(item: tuple[str, ResultsEntry]) -> Row:
        return _official_row(item[0].strip(), item[1], rules, place, team)

    items = ((f"{place}, {key.strip()}", (key, entry)) for key, entry in entries.items())
    return parse_all(row_of, items, file)


def _parse_result(text: str) -> Result:
    if problems := json_problems(text):
        raise Contradiction(problems)
    result = RESULT_ADAPTER.validate_json(text)
    problems: list[str] = []
    for name, quality in result.quality.items():
        psnrs = list((quality.psnr_per_image or {}).values())
        if psnrs and len(psnrs) != quality.num_images:
            problems.append(f"{name} has {quality.num_images} images, and PSNR of {len(psnrs)}")
        problems += mean_problems(f"quality.{name}.psnr", quality.psnr, psnrs, abs_tol=1e-6)
    if problems:
        raise Contradiction(problems)
    return result


def _baseline_rows(results: Iterable[Result], rules: Rules) -> list[Row]:
    """Row of the baseline as last timed with another method; none if it has a result itself.

    With the user's own weights the baseline's method is an entry like others.

    Its PSNR is unknown.
    """
    name, by_date = rules.baseline.method, sorted(results, key=lambda result: result.created)
    timed = [(r, r.baseline) for r in by_date if r.baseline and r.baseline.method == name]
    if not timed or any(r.method == name and r.weights_origin != "own" for r in by_date):
        return []
    result, baseline = timed[-1]
    origins = dict.fromkeys(_OFFICIAL_KEYS, f"measured interleaved with {result.method}, untrained")
    return [replace(_row_of_timing(baseline), spec=result.spec, provenance=origins)]


def _read_table(path: Path, on_note: OnNote) -> tuple[Row, ...]:
    """Rows of a table like the published one; its scores and ranks are ignored and recomputed."""
    lines = read_csv(path, on_note)
    columns = list(lines[0][1]) if lines else []
    _check_columns(columns, path)
    names = {*_TABLE_FIELDS, *FIGURE_COLUMNS, *_OTHER_COLUMNS}
    if unknown := [c for c in columns if c not in names and not c.startswith(("score_", "rank_"))]:
        on_note(f"{path.name}: columns that are not read: {', '.join(unknown)}")
    rows = parse_all(lambda entry: _table_row(path, *entry), ((n, (n, c)) for n, c in lines), path)
    _check_unique(rows, path)
    return tuple(row for _, row in rows)


def _check_columns(columns: Iterable[str], path: Path) -> None:
    """Raise `UnreadableFile` if two columns are the same figure under different names."""
    by_field: dict[str, list[str]] = {}
    for column in columns:
        by_field.setdefault(_FIELDS.get(column, column), []).append(column)
    if problems := [" and ".join(same) for same in by_field.values() if len(same) > 1]:
        raise UnreadableFile(
            f"Columns for the same figure: {bullet_list(problems, 'pair')}",
            rule="a table has one column for each figure",
            location=f"{path}, line 1",
            remedy="leave out or rename one of them",
        )


def _table_row(path: Path, line: str, cells: Mapping[str, str]) -> Row:
    figures: dict[str, Any] = {
        _FIELDS.get(name, name): cell for name, cell in cells.items() if cell
    }
    figures = {name: figures[name] for name in figures if name in _TABLE_FIELDS}
    source = f"{path.name}, {line}, column"
    origins = {_FIELDS.get(name, name): f"{source} {name}" for name in cells}
    row = TypeAdapter(Row).validate_python({**figures, "provenance": origins})
    runtimes = [row.runtime_valid_ms, row.runtime_test_ms]
    if None not in runtimes:
        problems = mean_problems("runtime_ms", row.runtime_ms, runtimes, record.RUNTIME_TOLERANCE)
        if problems:
            raise Contradiction(problems)
    return row


def _read_official(path: Path, rules: Rules, on_note: OnNote) -> tuple[Row, ...]:
    """Rows of the organisers' results.json: `<number>_<name>` -> figures of one run."""
    text = read_text(path)
    entries = record.parse_entries(text, path)

    def row_of(item: tuple[str, ResultsEntry]) -> Row:
        return _official_row(item[0].strip(), item[1], rules, path.name)

    rows = parse_all(row_of, ((key, (key, entry)) for key, entry in entries.items()), path)
    _check_unique(rows, path, lambda: {k.name: k.place for _, k in json_keys(text) if not k.path})
    _note_sizes(entries, rules, path.name, on_note)
    return tuple(row for _, row in rows)


def _note_sizes(entries: Entries, rules: Rules, file: str, on_note: OnNote) -> None:
    """Note the entries whose splits have another number of images than the challenge's."""
    required = rules.psnr_thresholds.num_images
    for split in ("valid", "test"):
        sizes = {
            key.strip(): len(getattr(e, f"{split}_psnr") or getattr(e, f"{split}_runtime"))
            for key, e in entries.items()
        }
        other = [f"{size} of {key}" for key, size in sizes.items() if size not in (0, required)]
        if other:
            on_note(f"{file}: {list_some(other)} instead of {required} images on {split}")


def _official_row(
    key: str, entry: ResultsEntry, rules: Rules, file: str, folder_team: str | None = None
) -> Row:
    """Row of one entry. Keys are kept as the program wrote them, `009_RFDN_SPAN` among them."""
    number, _, name = key.partition("_")
    origins = {field: f"{file}, {key}: {keys}" for field, keys in _OFFICIAL_KEYS.items()}
    for split, source in entry.psnr_source.items():
        origins[f"psnr_{split}"] += f", {source}"
    if entry.measured_by:
        measured = [field for field in origins if not field.startswith("psnr_")]
        origins |= {k: f"{origins[k]}, measured by {entry.measured_by}" for k in measured}
    return Row(
        team=record.team_of_key(key, entry, rules) or folder_team or name or number,
        method=name or number,
        psnr_valid=entry.valid_ave_psnr,
        psnr_test=entry.test_ave_psnr,
        runtime_valid_ms=entry.valid_ave_runtime,
        runtime_test_ms=entry.test_ave_runtime,
        runtime_ms=(entry.valid_ave_runtime + entry.test_ave_runtime) / 2,
        params_m=entry.num_parameters,
        flops_g=entry.flops,
        measured_by=entry.measured_by,
        series={split: _official_series(split, entry, rules) for split in ("valid", "test")},
        provenance=origins,
    )


def _official_series(split: str, entry: ResultsEntry, rules: Rules) -> ImageSeries:
    """Per-image figures of a split; without image names if the rules list another number."""
    psnr, runtime_ms = getattr(entry, f"{split}_psnr") or (), getattr(entry, f"{split}_runtime")
    names = rules.image_names(split)
    return ImageSeries(
        psnr=psnr,
        runtime_ms=runtime_ms,
        image_names=names if len(names) == len(psnr or runtime_ms) else (),
        # The program runs valid before test, so that only valid starts cold.
        cold_start=split == "valid" and bool(runtime_ms),
    )


def _check_unique(
    rows: Iterable[tuple[str, Row]],
    path: Path,
    find_places: Callable[[], Mapping[str, str]] = dict[str, str],
) -> None:
    """Raise `UnreadableFile` if a method of a team has two rows: it would take two ranks.

    Args:
        rows: Key or place of a row, and the row.
        path: What they were read from.
        find_places: Returns key -> its place in the file; called only if there are two rows.
    """
    same: dict[tuple[str, str], list[tuple[str, Row]]] = {}
    for key, row in rows:
        same.setdefault((row.team.casefold(), row.method.casefold()), []).append((key, row))
    if groups := [group for group in same.values() if len(group) > 1]:
        places = find_places()
        texts = {key: f"{key!r} ({place})" for key, place in places.items()}
        problems = [
            f"{group[0][1].method} of {group[0][1].team}: "
            + " and ".join(texts.get(key, key) for key, _ in group)
            for group in groups
        ]
        raise UnreadableFile(
            f"Duplicate entries: {bullet_list(problems, 'method')}",
            rule="a method of a team has one entry, and takes one rank",
            location=str(path),
            remedy="leave all but one out, or give them different names",
        )
