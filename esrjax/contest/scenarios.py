"""Scenarios: how the ranks change under other figures or other readings of the rules."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from esrjax.contest.peers import is_baseline
from esrjax.contest.rank import TRACKS, Ranking, Track, rerank
from esrjax.contest.rows import ImageSeries, Row
from esrjax.contest.rules import Note, Rules

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
