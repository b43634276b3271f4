"""Published tables: the cells of a ranking at published precision, and a reader of CSV tables."""

import difflib
import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from esrjax.challenge import results
from esrjax.challenge.rank import (
    TRACKS,
    RankedEntry,
    Ranking,
    Track,
    baseline_runtime_ms,
    is_baseline,
    rerank,
)
from esrjax.challenge.results import ImageSeries, Row
from esrjax.challenge.rules import Note, PublishedRuntimes, Rules
from esrjax.challenge.table import format_score
from esrjax.errors import InvalidArgument, NotFound, UnreadableFile
from esrjax.schema import bullet_list, format_errors

# Team -> column -> text of the cell; the rank of an unranked team is "".
PublishedTable = Mapping[str, Mapping[str, str]]

RUNTIME_COLUMNS = {  # column -> field of Row
    "runtime_val_ms": "runtime_valid_ms",
    "runtime_test_ms": "runtime_test_ms",
    "runtime_avg_ms": "runtime_ms",
}
COLUMNS = (
    *("psnr_val", "psnr_test", *RUNTIME_COLUMNS, "params_m", "flops_g"),
    *(f"{prefix}_{track}" for track in TRACKS for prefix in ("score", "rank")),
)


def table_cells(ranking: Ranking) -> PublishedTable:
    """Return every known figure, score and rank of a ranking at published precision.

    A published table has one line for each team; a team with several methods in the ranking gets
    one line for each, called `team, method`.
    """
    teams = [row.team for row in ranking.rows]
    repeated = {team for team in teams if teams.count(team) > 1}
    return {
        _line_name(entry.row, repeated): _line_cells(entry, ranking.rules)
        for entry in ranking.entries
    }


def _line_name(row: Row, repeated: set[str]) -> str:
    return f"{row.team}, {row.method}" if row.team in repeated else row.team


def _line_cells(entry: RankedEntry, rules: Rules) -> dict[str, str]:
    row, decimals = entry.row, rules.score.decimals
    figures = {
        "psnr_val": (row.psnr_valid, rules.psnr_thresholds.decimals),
        "psnr_test": (row.psnr_test, rules.psnr_thresholds.decimals),
        **{c: (getattr(row, name), decimals.runtime) for c, name in RUNTIME_COLUMNS.items()},
        "params_m": (row.params_m, decimals.params),
        "flops_g": (row.flops_g, decimals.flops),
    }
    cells = {
        c: f"{value:.{digits}f}" for c, (value, digits) in figures.items() if value is not None
    }
    for track in TRACKS:
        cells[f"score_{track}"] = format_score(entry.score(track))
        cells[f"rank_{track}"] = str(entry.rank(track) or "")
    return cells


def read_table(path: Path) -> PublishedTable:
    """Read a published table: CSV with a column `team` and any of `COLUMNS`.

    Raises:
        NotFound: No such file, or it is no CSV table.
        UnreadableFile: Cells are not numbers, or a team is missing or duplicate; all are listed.
    """
    if not path.is_file():
        raise NotFound(
            f"No such file: '{path}'",
            rule="a published table is a .csv file with a column `team`",
            remedy="check the path",
        )
    lines = results.read_csv(path)
    problems = [problem for line, cells in lines for problem in _cell_problems(line, cells)]
    teams = [t for t, count in Counter(c.get("team") for _, c in lines).items() if count > 1]
    problems += [f"team {team!r} is duplicate" for team in teams if team]
    if problems or not lines:
        raise UnreadableFile(
            f"Invalid table: {bullet_list(problems or ['no lines'])}",
            rule=f"a column team, and numbers in the columns {', '.join(COLUMNS)}",
            location=str(path),
            remedy="correct the listed cells",
        )
    return {
        cells["team"]: {column: cells[column] for column in COLUMNS if column in cells}
        for _, cells in lines
    }


def _cell_problems(line: str, cells: Mapping[str, str]) -> list[str]:
    missing = [] if cells.get("team") else [f"{line}: team is missing"]
    return missing + [
        f"{line}: {column} should be a number, found {cells[column]!r}"
        for column in COLUMNS
        if cells.get(column) and parse_number(cells[column]) is None
    ]


def parse_number(text: str) -> float | None:
    """Return the number in a cell, or None if there is none."""
    try:
        return float(text)
    except ValueError:
        return None


# --------------------------------------------------------------------------------------------------
# Scenarios: how the ranks change under other figures or other readings of the rules.
# --------------------------------------------------------------------------------------------------


UNROUNDED = 12  # decimals that leave a PSNR as it is


@dataclass(frozen=True, kw_only=True)
class RankChange:
    """A rank of a method before and after a change; None where the method is not ranked."""

    team: str
    method: str
    track: Track
    before: int | None
    after: int | None


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A change of figures or rules, and every rank that it changes."""

    name: str
    rank_changes: tuple[RankChange, ...]


def all_scenarios(ranking: Ranking) -> tuple[Scenario, ...]:
    """Return every scenario that the rules and rows of a ranking allow."""
    return tuple(
        Scenario(name=name, rank_changes=rank_changes(ranking, other))
        for name, other in _alternatives(ranking)
    )


def rank_changes(before: Ranking, after: Ranking) -> tuple[RankChange, ...]:
    """Return the ranks that differ, main track first; entries are matched by team and method."""
    entries = {(entry.row.team, entry.row.method): entry for entry in after.entries}
    pairs = [(entry, entries[entry.row.team, entry.row.method]) for entry in before.entries]
    return tuple(
        RankChange(team=one.row.team, method=one.row.method, track=track, before=old, after=new)
        for track in reversed(TRACKS)
        for one, other in pairs
        if (old := one.rank(track)) != (new := other.rank(track))
    )


def _alternatives(ranking: Ranking) -> Iterator[tuple[str, Ranking]]:
    """Name and ranking of each scenario."""
    rules, rows = ranking.rules, ranking.rows
    if any(is_mean_over_images(row) for row in rows):
        yield (
            "without the first image (cold start)",
            rerank(ranking, rows=map(without_cold_start, rows)),
        )
    for note in rules.notes:
        for row in alternate_rows(rows, note):
            name = f"with {row.flops_g:.2f} G FLOPs for {note.team}"
            yield name, rerank(ranking, rows=replace_row(rows, row))
    for entry in ranking.with_status("ranked"):
        if entry.waiver:
            yield (
                f"without the waiver of {entry.row.team}: {entry.waiver}",
                rerank(ranking, rules=_without_waivers(rules)),
            )
    if ranking.apply_thresholds:
        thresholds = replace(rules.psnr_thresholds, decimals=UNROUNDED)
        name = "with thresholds applied to the unrounded PSNR"
        yield name, rerank(ranking, rules=replace(rules, psnr_thresholds=thresholds))
    if ranking.figures == "exact":
        yield "with figures rounded as in the published table", rerank(ranking, figures="printed")
    if ranking.baseline_source == "measured" and _on_official_device(rows, rules):
        yield "relative to the published baseline", rerank(ranking, baseline_source="published")


def is_mean_over_images(row: Row) -> bool:
    """Return whether the scored runtime is the mean over datasets of their means over images."""
    means = _means(row)
    return bool(means) and math.isclose(fmean(means), row.runtime_ms, rel_tol=1e-6)


def without_cold_start(row: Row) -> Row:
    """Return the row with its runtime over all images but the first one of a process.

    A row whose runtime is not a mean over images stays as it is.
    """
    if not is_mean_over_images(row):
        return row
    means = [fmean(s.runtime_ms[s.cold_start :] or s.runtime_ms) for s in _timed_series(row)]
    return replace(row, runtime_ms=fmean(means))


def _means(row: Row) -> list[float]:
    return [fmean(series.runtime_ms) for series in _timed_series(row)]


def _timed_series(row: Row) -> list[ImageSeries]:
    return [series for series in row.series.values() if series.runtime_ms]


def replace_row(rows: Sequence[Row], new: Row) -> tuple[Row, ...]:
    """Return the rows with that of the same team and method replaced by `new`."""
    name = (new.team, new.method)
    return tuple(new if (row.team, row.method) == name else row for row in rows)


def alternate_rows(rows: Sequence[Row], note: Note) -> Iterator[Row]:
    """Yield the rows that have one of a note's two FLOPs figures, with the other figure."""
    if note.corrected_flops_g is None:
        return
    pair = (note.flops_g, note.corrected_flops_g)
    for row in rows:
        for figure, other in (pair, pair[::-1]):
            if row.team == note.team and abs(row.flops_g - figure) < abs(row.flops_g - other):
                yield replace(row, flops_g=other)


def _without_waivers(rules: Rules) -> Rules:
    return replace(rules, waivers=())


def _on_official_device(rows: Sequence[Row], rules: Rules) -> bool:
    """Whether the rows were timed on the published baseline's device, as far as they tell."""
    return all(row.device in (None, rules.baseline.device) for row in rows) and any(
        is_baseline(row, rules) for row in rows
    )


# --------------------------------------------------------------------------------------------------
# Comparison of a ranking with a published table, cell by cell, with reasons for differences.
# --------------------------------------------------------------------------------------------------


Rows = Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A known difference between the rows and the published table.

    Attributes:
        reason: The difference in words.
        revert: Returns the rows as they would be without it.
    """

    reason: str
    revert: Callable[[Rows], Rows]


@dataclass(frozen=True, kw_only=True)
class CellDiff:
    """A cell that differs from the published one.

    Attributes:
        team: Line of the cell.
        column: Column of the cell.
        computed: Cell of the ranking.
        published: Cell of the published table.
        reasons: The fewest causes whose reversal gives the published cell; empty if none do.
    """

    team: str
    column: str
    computed: str
    published: str
    reasons: tuple[str, ...]

    @property
    def relative_difference(self) -> float | None:
        """Computed over published figure, minus 1; None if one is not a number."""
        computed, published = parse_number(self.computed), parse_number(self.published)
        return computed / published - 1 if computed is not None and published else None


@dataclass(frozen=True, kw_only=True)
class TableDiff:
    """Comparison of all cells that a ranking and a published table have in common.

    Attributes:
        agreement: Column -> number of equal cells, and number of compared cells.
        cell_diffs: The cells that differ.
        unmatched_teams: Teams that only one side has; ranks are not compared if there are any.
    """

    agreement: Mapping[str, tuple[int, int]]
    cell_diffs: tuple[CellDiff, ...]
    unmatched_teams: tuple[str, ...]


def diff_tables(ranking: Ranking, published: PublishedTable) -> TableDiff:
    """Compare every cell of a published table with a ranking, and explain those that differ.

    Args:
        ranking: The ranking.
        published: The published table, for example from `esrjax.challenge.sensitivity.read_table`.
    """
    causes = _causes(ranking, published)
    # Reverted causes -> cells of the ranking without them; the smallest sets come first.
    cells_without = {
        reverted: table_cells(rerank(ranking, rows=_revert(ranking.rows, reverted)))
        for count in range(len(causes) + 1)
        for reverted in combinations(causes, count)
    }
    computed = cells_without[()]
    unmatched = computed.keys() ^ published.keys()
    pairs = [
        (team, column)
        for team, cells in computed.items()
        for column in cells
        if column in published.get(team, {}) and not (unmatched and column.startswith("rank"))
    ]
    differing = [pair for pair in pairs if not _equal(computed, published, *pair)]
    return TableDiff(
        agreement=_count_equal(pairs, differing),
        cell_diffs=tuple(
            CellDiff(
                team=team,
                column=column,
                computed=computed[team][column],
                published=published[team][column],
                reasons=_reasons(cells_without, published, team, column),
            )
            for team, column in differing
        ),
        unmatched_teams=tuple(sorted(unmatched)),
    )


def _equal(computed: PublishedTable, published: PublishedTable, team: str, column: str) -> bool:
    """Whether a cell is the same as text or as a number (4 and 4.000)."""
    ours, theirs = computed[team].get(column, ""), published[team][column]
    return ours == theirs or (
        parse_number(ours) is not None and parse_number(ours) == parse_number(theirs)
    )


def _count_equal(
    pairs: Sequence[tuple[str, str]], differing: Sequence[tuple[str, str]]
) -> dict[str, tuple[int, int]]:
    compared = [column for _, column in pairs]
    different = [column for _, column in differing]
    return {
        column: (compared.count(column) - different.count(column), compared.count(column))
        for column in dict.fromkeys(compared)
    }


def _reasons(
    cells_without: Mapping[tuple[Cause, ...], PublishedTable],
    published: PublishedTable,
    team: str,
    column: str,
) -> tuple[str, ...]:
    """Reasons of the first smallest set of causes whose reversal gives the published cell."""
    matches = (
        reverted
        for reverted, cells in cells_without.items()
        if _equal(cells, published, team, column)
    )
    return tuple(cause.reason for cause in next(matches, ()))


def _revert(rows: Rows, causes: Sequence[Cause]) -> Rows:
    for cause in causes:
        rows = cause.revert(rows)
    return rows


def _causes(ranking: Ranking, published: PublishedTable) -> list[Cause]:
    """Causes that the rules and rows suggest, the most specific first."""
    rules = ranking.rules
    notes = [_note_cause(note) for note in rules.notes if list(alternate_rows(ranking.rows, note))]
    return [*notes, _rounding_cause(rules), *_timing_cause(ranking, published)]


def _note_cause(note: Note) -> Cause:
    """The rows have the one figure of a note, the table has the other."""

    def revert(rows: Rows) -> Rows:
        for row in alternate_rows(rows, note):
            rows = replace_row(rows, row)
        return rows

    return Cause(reason=note.text, revert=revert)


def _rounding_cause(rules: Rules) -> Cause:
    """The organisers scored the rounded figures of their table, not the exact ones."""
    decimals = rules.score.decimals

    def revert(rows: Rows) -> Rows:
        return [
            replace(
                row,
                params_m=round(row.params_m, decimals.params),
                flops_g=round(row.flops_g, decimals.flops),
            )
            for row in rows
        ]

    return Cause(
        reason=f"the published scores use parameters rounded to {decimals.params} decimals and "
        f"FLOPs rounded to {decimals.flops}",
        revert=revert,
    )


def _timing_cause(ranking: Ranking, published: PublishedTable) -> Iterator[Cause]:
    """Runtimes of another device; or of one run, where published ones are means of several."""
    runtimes, official_device = ranking.rules.published_runtimes, ranking.rules.baseline.device
    devices = sorted({row.device for row in ranking.rows if row.device} - {official_device})
    if devices:
        reason = f"timed on {', '.join(devices)} here, on {official_device} in the published table"
        yield Cause(
            reason=reason, revert=lambda rows: [_published_timing(r, published) for r in rows]
        )
    elif runtimes and _are_means(published, runtimes):
        step = 10**-runtimes.decimals / runtimes.runs
        reason = (
            f"one run here, the published runtimes are means of {runtimes.runs} runs "
            f"(each of them is a multiple of {step:g} ms)"
        )
        yield Cause(
            reason=reason,
            revert=lambda rows: [
                _published_timing(row, published) if is_mean_over_images(row) else row
                for row in rows
            ],
        )


def _are_means(published: PublishedTable, runtimes: PublishedRuntimes) -> bool:
    """Whether every published runtime can be a mean of that many rounded runs."""
    units = runtimes.runs * 10**runtimes.decimals
    times = [
        value
        for cells in published.values()
        for c in RUNTIME_COLUMNS
        if (value := parse_number(cells.get(c, "")))
    ]
    return bool(times) and all(abs(time * units - round(time * units)) < 1e-6 for time in times)


def _published_timing(row: Row, published: PublishedTable) -> Row:
    """The row with published runtimes, and no longer scored against an interleaved baseline."""
    cells = published.get(row.team, {})
    times = {
        name: value
        for c, name in RUNTIME_COLUMNS.items()
        if (value := parse_number(cells.get(c, "")))
    }
    return replace(row, baseline_ms=None, **times) if times else row


# --------------------------------------------------------------------------------------------------
# Margins of each method: to the next ranks in runtime, and to the PSNR thresholds.
# --------------------------------------------------------------------------------------------------


STEP_MS = 0.1  # speed-up whose effect on the main score is reported


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Distances of a method to its neighbours in the ranking and to the thresholds.

    Attributes:
        team: Name of the team.
        method: Name of the method.
        score_drop: Fraction by which the main score drops if the method gets `STEP_MS` faster; None
            if it is not ranked.
        speedup_to_next_ms: Speed-up that gives the next better main score, ms; None if runtime
            alone cannot reach it.
        slack_ms: Slow-down after which the next method gets the better main score, ms.
        psnr_margin_mdb: Split -> PSNR minus the lowest PSNR that still rounds up to the threshold,
            0.001 dB; negative if the method is below the threshold.
        passes_by_rounding: Splits on which the method reaches the threshold only after rounding.
    """

    team: str
    method: str
    score_drop: float | None
    speedup_to_next_ms: float | None
    slack_ms: float | None
    psnr_margin_mdb: Mapping[str, float]
    passes_by_rounding: frozenset[str]


def compute_margins(ranking: Ranking) -> tuple[Margin, ...]:
    """Return the margins of every method that is ranked or below a threshold, in order."""
    ranked, below = ranking.with_status("ranked"), ranking.with_status("below_threshold")
    of_ranked = [_margin(ranking, entry, *_neighbours(entry, ranked)) for entry in ranked]
    return (*of_ranked, *(_margin(ranking, entry, None, None) for entry in below))


def _neighbours(
    entry: RankedEntry, ranked: Sequence[RankedEntry]
) -> tuple[RankedEntry | None, RankedEntry | None]:
    """The next entry with a better main score, and the next with an equal or worse one."""
    main = entry.log_scores["main"]
    better = [other for other in ranked if other.log_scores["main"] < main]
    others = [other for other in ranked if other.log_scores["main"] >= main and other is not entry]
    return better[-1] if better else None, others[0] if others else None


def _margin(
    ranking: Ranking, entry: RankedEntry, better: RankedEntry | None, worse: RankedEntry | None
) -> Margin:
    thresholds = _thresholds(ranking, entry)
    return Margin(
        team=entry.row.team,
        method=entry.row.method,
        score_drop=_score_drop(ranking, entry) if entry.ranks else None,
        speedup_to_next_ms=_distance_ms(ranking, entry, better),
        slack_ms=_distance_ms(ranking, entry, worse),
        psnr_margin_mdb={
            split: _psnr_margin_mdb(ranking, psnr, threshold)
            for split, psnr, threshold in thresholds
        },
        passes_by_rounding=frozenset(
            split
            for split, psnr, threshold in thresholds
            if psnr < threshold and split not in entry.below_threshold
        ),
    )


def _thresholds(ranking: Ranking, entry: RankedEntry) -> list[tuple[str, float, float]]:
    """(split, PSNR, threshold) for every threshold that applies to the method."""
    thresholds, row = ranking.rules.psnr_thresholds, entry.row
    splits = (
        ("valid", row.psnr_valid, thresholds.valid),
        ("test", row.psnr_test, thresholds.test),
    )
    return [
        (split, psnr, threshold)
        for split, psnr, threshold in splits
        if ranking.apply_thresholds and psnr
    ]


def _psnr_margin_mdb(ranking: Ranking, psnr: float, threshold: float) -> float:
    lowest = threshold - 0.5 * 10**-ranking.rules.psnr_thresholds.decimals
    return (psnr - lowest) * 1000


def _score_drop(ranking: Ranking, entry: RankedEntry) -> float:
    """`1 - score(t - STEP_MS) / score(t)`, with the other two scores unchanged."""
    # Fraction of the main score that comes from the runtime.
    fraction = math.exp(math.log(ranking.rules.score.weights.runtime) + _log_runtime_ratio(entry))
    return fraction * -math.expm1(-_log_score_per_ms(ranking, entry) * STEP_MS)


def _log_runtime_ratio(entry: RankedEntry) -> float:
    """Logarithm of the runtime score over the main score."""
    return entry.log_scores["runtime"] - entry.log_scores["main"]


def _log_score_per_ms(ranking: Ranking, entry: RankedEntry) -> float:
    """Change of the logarithm of the runtime score per millisecond."""
    return ranking.rules.score.factor / baseline_runtime_ms(entry.row, ranking.reference)


def _distance_ms(ranking: Ranking, entry: RankedEntry, other: RankedEntry | None) -> float | None:
    """Distance from an entry's runtime to the one that gives it the main score of the other."""
    if other is None:
        return None
    weights, other_log = ranking.rules.score.weights, other.log_scores["runtime"]
    # What params and FLOPs add to this entry's main score beyond the other's, over the weighted
    # runtime score of the other; the runtime score must be lower by that much.
    excess = sum(
        getattr(weights, name)
        / weights.runtime
        * math.exp(other.log_scores[name] - other_log)
        * math.expm1(entry.log_scores[name] - other.log_scores[name])
        for name in ("params", "flops")
    )
    if excess >= 1:
        return None
    runtime_ms = (other_log + math.log1p(-excess)) / _log_score_per_ms(ranking, entry)
    return abs(entry.row.runtime_ms - runtime_ms) if runtime_ms > 0 else None


# --------------------------------------------------------------------------------------------------
# Stability of ranks: a bootstrap over the images that runtimes are means over.
# --------------------------------------------------------------------------------------------------


Floats = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class RankStability:
    """95 % bootstrap intervals of a method's runtime and main rank (percentile method).

    Attributes:
        team: Name of the team.
        method: Name of the method.
        runtime_ms: Its runtime, ms.
        low_ms: Lower end of the interval of the runtime, ms.
        high_ms: Upper end of that interval, ms.
        rank: Its main rank.
        best_rank: Best rank in the interval.
        worst_rank: Worst rank in the interval.
        same_rank_fraction: Fraction of resamples in which it keeps its rank.
    """

    team: str
    method: str
    runtime_ms: float
    low_ms: float
    high_ms: float
    rank: int
    best_rank: int
    worst_rank: int
    same_rank_fraction: float


def rank_stability(ranking: Ranking, *, resamples: int = RESAMPLES) -> tuple[RankStability, ...]:
    """Return the stability of every ranked method's rank, in order.

    A resample draws images with replacement within each dataset, and the same images for all
    methods: runtimes of one image are correlated between methods, as a large image takes all of
    them longer, and independent draws would exaggerate how much ranks change. A runtime that is no
    mean over images stays as it is.

    Args:
        ranking: The ranking; without runtimes that are means over images the result is empty.
        resamples: Number of resamples.
    """
    entries = ranking.with_status("ranked")
    if not any(is_mean_over_images(entry.row) for entry in entries):
        return ()
    runtimes = np.stack([_resampled_runtime(entry.row, resamples) for entry in entries], axis=1)
    ranks = _ranks(_log_main_scores(ranking, runtimes))
    low, high = np.quantile(runtimes, [0.025, 0.975], axis=0)
    best, worst = np.quantile(ranks, [0.025, 0.975], axis=0, method="nearest")
    return tuple(
        RankStability(
            team=entry.row.team,
            method=entry.row.method,
            runtime_ms=entry.row.runtime_ms,
            low_ms=float(low[k]),
            high_ms=float(high[k]),
            rank=(rank := entry.rank("main") or 0),
            best_rank=int(best[k]),
            worst_rank=int(worst[k]),
            same_rank_fraction=float(np.mean(ranks[:, k] == rank)),
        )
        for k, entry in enumerate(entries)
    )


def _resampled_runtime(row: Row, resamples: int) -> Floats:
    """(resamples,): mean over datasets of the mean over drawn images, ms."""
    if not is_mean_over_images(row):
        return np.full(resamples, row.runtime_ms)
    datasets = [(name, s.runtime_ms) for name, s in row.series.items() if s.runtime_ms]
    means = [_draw_weights(name, len(ms), resamples) @ np.asarray(ms) for name, ms in datasets]
    return np.mean(means, axis=0)


@functools.lru_cache(maxsize=8)
def _draw_weights(name: str, num_images: int, resamples: int) -> Floats:
    """(resamples, num_images): how often each image is drawn, over `num_images`.

    The seed depends on the dataset only, so that all methods get the same draws.
    """
    rng = np.random.default_rng([num_images, *name.encode()])
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), resamples) / num_images


def _log_main_scores(ranking: Ranking, runtimes: Floats) -> Floats:
    """(resamples, methods): logarithms of the main scores."""
    entries, score = ranking.with_status("ranked"), ranking.rules.score
    baselines = np.stack([_baseline_ms(e.row, ranking, len(runtimes)) for e in entries], axis=1)
    params = [np.log(score.weights.params) + entry.log_scores["params"] for entry in entries]
    flops = [np.log(score.weights.flops) + entry.log_scores["flops"] for entry in entries]
    runtime = np.log(score.weights.runtime) + score.factor * runtimes / baselines
    return np.logaddexp(runtime, np.logaddexp(params, flops)[None])


def _baseline_ms(row: Row, ranking: Ranking, resamples: int) -> Floats:
    """(resamples,): the baseline's runtime; over the drawn images if it is a row's, ms."""
    reference = ranking.reference
    if isinstance(reference, Row) and row.baseline_ms is None:
        return _resampled_runtime(reference, resamples)
    return np.full(resamples, baseline_runtime_ms(row, reference))


def _ranks(log_scores: Floats) -> NDArray[np.int64]:
    return 1 + np.sum(log_scores[:, None, :] < log_scores[:, :, None], axis=2)


# --------------------------------------------------------------------------------------------------
# What-if changes of figures, such as `METHOD:runtime=-0.5`, and their effect on the ranks.
# --------------------------------------------------------------------------------------------------


# Name of a figure -> its unit, and the fields of Row that it stands for.
FIGURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "runtime": ("ms", ("runtime_ms",)),
    "params": ("M", ("params_m",)),
    "flops": ("G", ("flops_g",)),
    "psnr": ("dB", ("psnr_valid", "psnr_test")),
    "psnr_valid": ("dB", ("psnr_valid",)),
    "psnr_test": ("dB", ("psnr_test",)),
}
_CHANGE = re.compile(r"(?P<method>.+):(?P<figure>\w+)=(?P<value>[+-]?\d+(\.\d*)?([eE][+-]?\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of one figure.

    Attributes:
        method: Method or team whose figure changes.
        figure: One of `FIGURES`.
        value: New value, or the difference to the old one, in the unit of the figure.
        is_relative: Whether `value` is a difference.
    """

    method: str
    figure: str
    value: float
    is_relative: bool

    def __str__(self) -> str:
        value = f"{self.value:+g}" if self.is_relative else f"= {self.value:g}"
        return f"{self.method} {self.figure} {value} {FIGURES[self.figure][0]}"


def parse_changes(texts: Iterable[str]) -> tuple[Change, ...]:
    """Parse changes.

    Args:
        texts: `METHOD:FIGURE=NUMBER`; a number with a sign is added to the figure, one without a
            sign replaces it.

    Raises:
        InvalidArgument: A text has another form, or the figure is unknown.
    """
    parsed = [(text, _CHANGE.fullmatch(text)) for text in texts]
    invalid = [text for text, match in parsed if not match or match["figure"] not in FIGURES]
    if invalid:
        raise InvalidArgument(
            f"Invalid change: {', '.join(map(repr, invalid))}",
            rule=f"it is METHOD:FIGURE=NUMBER, with FIGURE one of {', '.join(FIGURES)}",
            remedy="write METHOD:runtime=-0.5 to subtract 0.5 ms, METHOD:params=0.2 to set 0.2 M",
        )
    return tuple(
        Change(
            method=match["method"],
            figure=match["figure"],
            value=float(match["value"]),
            is_relative=match["value"][0] in "+-",
        )
        for _, match in parsed
        if match
    )


def apply_changes(rows: Sequence[Row], changes: Iterable[Change], rules: Rules) -> tuple[Row, ...]:
    """Return the rows with all changes applied, in order.

    A change of the baseline's runtime also changes the runtimes of the baseline that were measured
    interleaved with other methods.

    Raises:
        InvalidArgument: A change names no row, or gives a figure that is not possible.
    """
    for change in changes:
        row = _find_row(rows, change.method)
        fields = FIGURES[change.figure][1]
        rows = replace_row(rows, _apply(row, change, fields))
        if is_baseline(row, rules) and "runtime_ms" in fields:
            updated = [_apply(row, change, ("baseline_ms",)) for row in rows if row.baseline_ms]
            for row in updated:
                rows = replace_row(rows, row)
    return tuple(rows)


def what_if_scenario(changes: Sequence[Change], before: Ranking, after: Ranking) -> Scenario:
    """Return the effect of changes on the ranks as a scenario."""
    name = f"What if {', '.join(map(str, changes))}"
    return Scenario(name=name, rank_changes=rank_changes(before, after))


def _find_row(rows: Sequence[Row], name: str) -> Row:
    """The one row with this method, or else with this team; the case does not matter."""
    for names in ([row.method for row in rows], [row.team for row in rows]):
        matches = [row for row, n in zip(rows, names, strict=True) if n.lower() == name.lower()]
        if len(matches) == 1:
            return matches[0]
    known = {n.lower(): n for row in rows for n in (row.team, row.method)}
    similar = difflib.get_close_matches(name.lower(), known, n=1)
    raise InvalidArgument(
        f"Unknown or ambiguous method {name!r}",
        rule=f"a method or a team of the ranking: {', '.join(row.method for row in rows)}",
        remedy=f"did you mean {known[similar[0]]!r}?" if similar else "name one of these",
    )


def _apply(row: Row, change: Change, fields: Sequence[str]) -> Row:
    old = {name: getattr(row, name) for name in fields}
    if change.is_relative and None in old.values():
        raise _impossible(change, [f"{name} is unknown" for name in fields])
    new = {name: change.value + (old[name] if change.is_relative else 0) for name in fields}
    try:
        return replace(row, **new)
    except ValidationError as error:
        raise _impossible(change, format_errors(error)) from None


def _impossible(change: Change, problems: list[str]) -> InvalidArgument:
    return InvalidArgument(
        f"Cannot apply {str(change)!r}: {bullet_list(problems)}",
        rule="runtime and PSNR are positive, params and FLOPs are not negative",
        remedy="change it by less, or give the value itself, without a sign",
    )
