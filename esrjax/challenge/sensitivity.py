"""Sensitivity of a ranking: what its ranks depend on.

- Scenarios: how the ranks change under other figures or other readings of the rules.
- Margins of each method: to the next ranks in runtime, and to the PSNR thresholds.
- Stability of ranks: a bootstrap over the images that runtimes are means over.
- What-if changes of figures, such as `METHOD:runtime=-0.5`, and their effect on the ranks.
"""

import functools
import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

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
from esrjax.challenge.rules import Note, Rules
from esrjax.errors import InvalidArgument, suggest
from esrjax.schema import bullet_list, format_errors

Rows = Sequence[Row]
Floats = NDArray[np.float64]

UNROUNDED = 12  # decimals that leave a PSNR as it is
STEP_MS = 0.1  # speed-up whose effect on the main score is reported
RESAMPLES = 2000  # of the bootstrap

# Name of a figure -> its unit, and the fields of Row that it stands for.
FIGURES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "runtime": ("ms", ("runtime_ms",)),
    "params": ("M", ("params_m",)),
    "flops": ("G", ("flops_g",)),
    "psnr": ("dB", ("psnr_valid", "psnr_test")),
    "psnr_valid": ("dB", ("psnr_valid",)),
    "psnr_test": ("dB", ("psnr_test",)),
}
_CHANGE = re.compile(
    rf"(?P<method>.+):(?P<figure>{'|'.join(FIGURES)})=(?P<value>[+-]?\d+(\.\d*)?([eE][+-]?\d+)?)"
)


# --- scenarios ---


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
    if any(map(scored_series, rows)):
        warm = map(without_cold_start, rows)
        yield "without the first image (cold start)", rerank(ranking, rows=warm)
    for note in rules.notes:
        for row in alternate_rows(rows, note):
            name = f"with {row.flops_g:.2f} G FLOPs for {note.team}"
            yield name, rerank(ranking, rows=replace_row(rows, row))
    without_waivers = replace(rules, waivers=())
    for entry in ranking.with_status("ranked"):
        if entry.waiver:
            name = f"without the waiver of {entry.row.team}: {entry.waiver}"
            yield name, rerank(ranking, rules=without_waivers)
    if ranking.apply_thresholds:
        thresholds = replace(rules.psnr_thresholds, decimals=UNROUNDED)
        name = "with thresholds applied to the unrounded PSNR"
        yield name, rerank(ranking, rules=replace(rules, psnr_thresholds=thresholds))
    if ranking.figures == "exact":
        yield "with figures rounded as in the published table", rerank(ranking, figures="printed")
    # The published baseline applies to rows of its device, as far as they tell.
    is_official_device = all(row.device in (None, rules.baseline.device) for row in rows)
    if ranking.baseline_source == "measured" and is_official_device:
        yield "relative to the published baseline", rerank(ranking, baseline_source="published")


def scored_series(row: Row) -> dict[str, ImageSeries]:
    """Return the series whose runtimes are scored, by dataset.

    The scored runtime must be the mean over datasets of their means over images; otherwise, as for
    a median at one image size, the result is empty.
    """
    timed = {name: series for name, series in row.series.items() if series.runtime_ms}
    means = [fmean(series.runtime_ms) for series in timed.values()]
    is_mean = bool(means) and math.isclose(fmean(means), row.runtime_ms, rel_tol=1e-6)
    return timed if is_mean else {}


def without_cold_start(row: Row) -> Row:
    """Return the row with its runtime over all images but the first one of a process.

    A row whose runtime is not a mean over images stays as it is.
    """
    series = scored_series(row).values()
    means = [fmean(s.runtime_ms[s.cold_start :] or s.runtime_ms) for s in series]
    return replace(row, runtime_ms=fmean(means)) if means else row


def replace_row(rows: Rows, new: Row) -> tuple[Row, ...]:
    """Return the rows with that of the same team and method replaced by `new`."""
    name = (new.team, new.method)
    return tuple(new if (row.team, row.method) == name else row for row in rows)


def alternate_rows(rows: Rows, note: Note) -> Iterator[Row]:
    """Yield the rows that have one of a note's two FLOPs figures, with the other figure."""
    if note.corrected_flops_g is None:
        return
    pair = (note.flops_g, note.corrected_flops_g)
    for row in rows:
        if row.team == note.team:  # the other figure is the one farther from the row's
            yield replace(row, flops_g=max(pair, key=lambda flops_g: abs(row.flops_g - flops_g)))


# --- margins ---


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
    ranked = ranking.with_status("ranked")  # by their main scores
    scores = [entry.log_scores["main"] for entry in ranked]
    margins: list[Margin] = []
    for index, entry in enumerate(ranked):
        first = bisect_left(scores, entry.log_scores["main"])  # of the entries with its score
        better = ranked[first - 1] if first else None
        second = first + (index == first)  # an entry is not its own neighbour
        worse = ranked[second] if second < len(ranked) else None
        margins.append(_margin(ranking, entry, better, worse))
    below = ranking.with_status("below_threshold")
    return (*margins, *(_margin(ranking, entry, None, None) for entry in below))


def _margin(
    ranking: Ranking, entry: RankedEntry, better: RankedEntry | None, worse: RankedEntry | None
) -> Margin:
    """Margins to the next entry with a better main score, and to one with an equal or worse one."""
    psnrs = entry.row.psnr_by_split if ranking.apply_thresholds else {}
    thresholds = ranking.rules.psnr_thresholds.by_split
    half_step = 0.5 * 10**-ranking.rules.psnr_thresholds.decimals
    below = {split for split, psnr in psnrs.items() if psnr < thresholds[split]}
    return Margin(
        team=entry.row.team,
        method=entry.row.method,
        score_drop=_score_drop(ranking, entry) if entry.ranks else None,
        speedup_to_next_ms=_distance_ms(ranking, entry, better) if better else None,
        slack_ms=_distance_ms(ranking, entry, worse) if worse else None,
        psnr_margin_mdb={
            split: (psnr - (thresholds[split] - half_step)) * 1000 for split, psnr in psnrs.items()
        },
        passes_by_rounding=frozenset(below - entry.below_threshold),
    )


def _score_drop(ranking: Ranking, entry: RankedEntry) -> float:
    """`1 - score(t - STEP_MS) / score(t)`, with the other two scores unchanged."""
    # Fraction of the main score that comes from the runtime.
    log_ratio = entry.log_scores["runtime"] - entry.log_scores["main"]
    fraction = math.exp(math.log(ranking.rules.score.weights.runtime) + log_ratio)
    return fraction * -math.expm1(-_log_score_per_ms(ranking, entry) * STEP_MS)


def _log_score_per_ms(ranking: Ranking, entry: RankedEntry) -> float:
    """Change of the logarithm of the runtime score per millisecond."""
    return ranking.rules.score.factor / baseline_runtime_ms(entry.row, ranking.reference)


def _distance_ms(ranking: Ranking, entry: RankedEntry, other: RankedEntry) -> float | None:
    """Distance from an entry's runtime to the one that gives it the main score of the other."""
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


# --- stability of ranks ---


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


def rank_stability(ranking: Ranking) -> tuple[RankStability, ...]:
    """Return the stability of every ranked method's rank, in order.

    A resample draws images with replacement within each dataset, and the same images for all
    methods: runtimes of one image are correlated between methods, as a large image takes all of
    them longer, and independent draws would exaggerate how much ranks change. A runtime that is no
    mean over images stays as it is.

    Args:
        ranking: The ranking; without runtimes that are means over images the result is empty.
    """
    entries = ranking.with_status("ranked")
    if not any(scored_series(entry.row) for entry in entries):
        return ()
    runtimes = np.stack([_resampled_runtime(entry.row) for entry in entries], axis=1)
    log_scores = _log_main_scores(ranking, runtimes)
    ranks = np.stack([_ranks(scores) for scores in log_scores])
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


def _ranks(scores: Floats) -> NDArray[np.int64]:
    """Ranks of scores (n,): equal ones share the better rank, and the next one is skipped."""
    order = np.argsort(scores)
    ranks = np.empty(len(scores), np.int64)
    ranks[order] = 1 + np.searchsorted(scores[order], scores[order])  # fast where both are sorted
    return ranks


def _resampled_runtime(row: Row) -> Floats:
    """(RESAMPLES,): mean over datasets of the mean over drawn images, ms."""
    times = {name: np.asarray(series.runtime_ms) for name, series in scored_series(row).items()}
    means = [_draw_weights(name, len(ms)) @ ms for name, ms in times.items()]
    return np.mean(means, axis=0) if means else np.full(RESAMPLES, row.runtime_ms)


@functools.lru_cache(maxsize=8)
def _draw_weights(name: str, num_images: int) -> Floats:
    """(RESAMPLES, num_images): how often each image is drawn, over `num_images`.

    The seed depends on the dataset only, so that all methods get the same draws.
    """
    rng = np.random.default_rng([num_images, *name.encode()])
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), RESAMPLES) / num_images


def _log_main_scores(ranking: Ranking, runtimes: Floats) -> Floats:
    """(RESAMPLES, methods): logarithms of the main scores."""
    entries, score = ranking.with_status("ranked"), ranking.rules.score
    baselines = np.stack([_baseline_ms(entry.row, ranking) for entry in entries], axis=1)
    params = [np.log(score.weights.params) + entry.log_scores["params"] for entry in entries]
    flops = [np.log(score.weights.flops) + entry.log_scores["flops"] for entry in entries]
    runtime = np.log(score.weights.runtime) + score.factor * runtimes / baselines
    return np.logaddexp(runtime, np.logaddexp(params, flops)[None])


def _baseline_ms(row: Row, ranking: Ranking) -> Floats:
    """(RESAMPLES,): the baseline's runtime; over the drawn images if it is a row's, ms."""
    reference = ranking.reference
    if isinstance(reference, Row) and row.baseline_ms is None:
        return _resampled_runtime(reference)
    return np.full(RESAMPLES, baseline_runtime_ms(row, reference))


# --- what-if changes ---


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
    matches = [(text, _CHANGE.fullmatch(text)) for text in texts]
    if invalid := [text for text, match in matches if match is None]:
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
        for _, match in matches
        if match
    )


def apply_changes(rows: Rows, changes: Iterable[Change], rules: Rules) -> tuple[Row, ...]:
    """Return the rows with all changes applied, in order.

    A change of the baseline's runtime also changes the runtimes of the baseline that were measured
    interleaved with other methods.

    Raises:
        InvalidArgument: A change names no row, or gives a figure that is not possible.
    """
    for change in changes:
        row, fields = _find_row(rows, change.method), FIGURES[change.figure][1]
        rows = replace_row(rows, _apply(row, change, fields))
        if is_baseline(row, rules) and "runtime_ms" in fields:
            rows = [_apply(r, change, ("baseline_ms",)) if r.baseline_ms else r for r in rows]
    return tuple(rows)


def what_if_scenario(changes: Sequence[Change], before: Ranking, after: Ranking) -> Scenario:
    """Return the effect of changes on the ranks as a scenario."""
    name = f"What if {', '.join(map(str, changes))}"
    return Scenario(name=name, rank_changes=rank_changes(before, after))


def _find_row(rows: Rows, name: str) -> Row:
    """The one row with this method, or else with this team; the case does not matter."""
    for names in ([row.method for row in rows], [row.team for row in rows]):
        matches = [row for row, n in zip(rows, names, strict=True) if n.lower() == name.lower()]
        if len(matches) == 1:
            return matches[0]
    raise InvalidArgument(
        f"Unknown or ambiguous method {name!r}",
        rule=f"a method or a team of the ranking: {', '.join(row.method for row in rows)}",
        remedy=suggest(name, [n for r in rows for n in (r.team, r.method)], "name one of these"),
    )


def _apply(row: Row, change: Change, fields: Sequence[str]) -> Row:
    old = {name: getattr(row, name) if change.is_relative else 0 for name in fields}
    if None in old.values():
        problems = [f"{name} is unknown" for name in fields]
    else:
        try:
            return replace(row, **{name: value + change.value for name, value in old.items()})
        except ValidationError as error:
            problems = format_errors(error)
    raise InvalidArgument(
        f"Cannot apply {str(change)!r}: {bullet_list(problems)}",
        rule="runtime and PSNR are positive, params and FLOPs are not negative",
        remedy="change it by less, or give the value itself, without a sign",
    )
