"""What a ranking becomes when something is otherwise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from esrjax.contest.peers import is_baseline
from esrjax.contest.rank import TRACKS, Ranking, Track, again
from esrjax.contest.rows import Row, Series
from esrjax.contest.rules import Note, Rules

UNROUNDED = 12  # decimals that round nothing


@dataclass(frozen=True, kw_only=True)
class Move:
    """A rank that is no longer what it was; None of a method that is not ranked."""

    team: str
    method: str
    track: Track
    before: int | None
    after: int | None


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Something that is otherwise, and every rank that it changes."""

    name: str
    moves: tuple[Move, ...]


def scenarios(ranking: Ranking) -> tuple[Scenario, ...]:
    """Everything that the rules and the rows let one ask."""
    return tuple(
        Scenario(name=name, moves=moves(ranking, other)) for name, other in _others(ranking)
    )


def moves(before: Ranking, after: Ranking) -> tuple[Move, ...]:
    """The ranks that differ, best first; a row is the same by its team and method."""
    lines = {(line.row.team, line.row.method): line for line in after.lines}
    pairs = [(line, lines[line.row.team, line.row.method]) for line in before.lines]
    return tuple(
        Move(team=one.row.team, method=one.row.method, track=track, before=old, after=new)
        for track in reversed(TRACKS)
        for one, other in pairs
        if (old := one.place(track)) != (new := other.place(track))
    )


def _others(ranking: Ranking) -> Iterator[tuple[str, Ranking]]:
    rules, rows = ranking.rules, ranking.rows
    if any(over_pictures(row) for row in rows):
        yield "without the first picture (cold start)", again(ranking, rows=map(warm, rows))
    for note in rules.notes:
        for other in exchanged(rows, note):
            said = f"with {other.flops_g:.2f} G FLOPs of {note.team}"
            yield said, again(ranking, rows=swapped(rows, other))
    for line in ranking.of("ranked"):
        if line.waived:
            yield f"without {line.row.team}, {line.waived}", again(ranking, rules=_strict(rules))
    if ranking.floors:
        floors = replace(rules.floors, decimals=UNROUNDED)
        said = "with floors asked of the PSNR as measured, not rounded"
        yield said, again(ranking, rules=replace(rules, floors=floors))
    if ranking.figures == "exact":
        yield "with figures rounded as the contest prints them", again(ranking, figures="printed")
    if ranking.base == "own" and _at_home(rows, rules):
        yield "relative to the published baseline", again(ranking, base="published")


def over_pictures(row: Row) -> bool:
    """Whether the scored runtime is the mean over sets of the mean over their pictures."""
    held = _means(row)
    return bool(held) and math.isclose(fmean(held), row.runtime_ms, rel_tol=1e-6)


def warm(row: Row) -> Row:
    """The row with every first picture that began a run left out of the runtime."""
    if not over_pictures(row):
        return row
    means = [fmean(each.runtime_ms[each.cold :] or each.runtime_ms) for each in _timed(row)]
    return replace(row, runtime_ms=fmean(means))


def _means(row: Row) -> list[float]:
    return [fmean(each.runtime_ms) for each in _timed(row)]


def _timed(row: Row) -> list[Series]:
    return [each for each in row.series.values() if each.runtime_ms]


def swapped(rows: Sequence[Row], other: Row) -> tuple[Row, ...]:
    """The rows, with another in the place of the one of this team and method."""
    name = (other.team, other.method)
    return tuple(other if (row.team, row.method) == name else row for row in rows)


def exchanged(rows: Sequence[Row], note: Note) -> Iterator[Row]:
    """Rows that have one of a note's two figures, with the other."""
    if note.instead_g is None:
        return
    pair = (note.flops_g, note.instead_g)
    for row in rows:
        for figure, other in (pair, pair[::-1]):
            if row.team == note.team and abs(row.flops_g - figure) < abs(row.flops_g - other):
                yield replace(row, flops_g=other)


def _strict(rules: Rules) -> Rules:
    return replace(rules, waived=())


def _at_home(rows: Sequence[Row], rules: Rules) -> bool:
    """Whether the published baseline was timed where these rows were, as far as they say."""
    return all(row.device in (None, rules.baseline.device) for row in rows) and any(
        is_baseline(row, rules) for row in rows
    )
