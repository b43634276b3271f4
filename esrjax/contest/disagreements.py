"""Where a ranking and a printed table disagree, and what explains it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from esrjax.contest.prints import RUNTIMES, Print, cells, number
from esrjax.contest.rank import Ranking, again
from esrjax.contest.rows import Row
from esrjax.contest.rules import Note, Published, Rules
from esrjax.contest.scenarios import exchanged, over_pictures, swapped

Rows = Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A difference between here and the print, and the rows without it."""

    reason: str
    undone: Callable[[Rows], Rows]


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """A cell that is another in print.

    reasons: the fewest causes without which it is the printed one; none where that never happens.
    """

    team: str
    column: str
    here: str
    printed: str
    reasons: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        """By which part the figure here is above the printed one."""
        here, there = number(self.here), number(self.printed)
        return here / there - 1 if here is not None and there else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All cells that both sides have. agree: column -> how many agree, of how many.

    strangers: teams that only one side knows; where there are some, ranks are not compared.
    """

    agree: Mapping[str, tuple[int, int]]
    disagreements: tuple[Disagreement, ...]
    strangers: tuple[str, ...]


def compare(ranking: Ranking, said: Print) -> Comparison:
    """Every cell of the print beside that of the ranking, and why those differ that do."""
    causes = _causes(ranking, said)
    without = {
        chosen: cells(again(ranking, rows=_undone(ranking.rows, chosen)))
        for count in range(len(causes) + 1)
        for chosen in combinations(causes, count)
    }
    here = without[()]
    strangers = here.keys() ^ said.keys()
    pairs = [
        (team, column)
        for team, known in here.items()
        for column in known
        if column in said.get(team, {}) and not (strangers and column.startswith("rank"))
    ]
    differ = [pair for pair in pairs if not _same(here, said, *pair)]
    return Comparison(
        agree=_counts(pairs, differ),
        disagreements=tuple(
            Disagreement(
                team=team,
                column=column,
                here=here[team][column],
                printed=said[team][column],
                reasons=_reasons(without, said, team, column),
            )
            for team, column in differ
        ),
        strangers=tuple(sorted(strangers)),
    )


def _same(here: Print, said: Print, team: str, column: str) -> bool:
    mine, theirs = here[team].get(column, ""), said[team][column]
    return mine == theirs or (number(mine) is not None and number(mine) == number(theirs))


def _counts(
    pairs: Sequence[tuple[str, str]], differ: Sequence[tuple[str, str]]
) -> dict[str, tuple[int, int]]:
    of = [column for _, column in pairs]
    wrong = [column for _, column in differ]
    return {
        each: (of.count(each) - wrong.count(each), of.count(each)) for each in dict.fromkeys(of)
    }


def _reasons(
    without: Mapping[tuple[Cause, ...], Print], said: Print, team: str, column: str
) -> tuple[str, ...]:
    """Of the smallest set of causes, the first that is tried, that gives the printed cell."""
    found = (chosen for chosen, here in without.items() if _same(here, said, team, column))
    return tuple(cause.reason for cause in next(found, ()))


def _undone(rows: Rows, causes: Sequence[Cause]) -> Rows:
    for cause in causes:
        rows = cause.undone(rows)
    return rows


def _causes(ranking: Ranking, said: Print) -> list[Cause]:
    """What the rules and the rows say of how the two can differ, the most particular first."""
    rules = ranking.rules
    notes = [_noted(note) for note in rules.notes if list(exchanged(ranking.rows, note))]
    return [*notes, _rounding(rules), *_timing(ranking, said)]


def _noted(note: Note) -> Cause:
    def undone(rows: Rows) -> Rows:
        for other in exchanged(rows, note):
            rows = swapped(rows, other)
        return rows

    return Cause(reason=note.text, undone=undone)


def _rounding(rules: Rules) -> Cause:
    decimals = rules.score.decimals

    def undone(rows: Rows) -> Rows:
        return [
            replace(
                row,
                params_m=round(row.params_m, decimals.params),
                flops_g=round(row.flops_g, decimals.flops),
            )
            for row in rows
        ]

    return Cause(
        reason=f"the print scores parameters rounded to {decimals.params} decimals and FLOPs "
        f"rounded to {decimals.flops}",
        undone=undone,
    )


def _timing(ranking: Ranking, said: Print) -> Iterator[Cause]:
    """Another machine; or one run over the pictures here, and the mean of several in print."""
    published, home = ranking.rules.published, ranking.rules.baseline.device
    devices = sorted({row.device for row in ranking.rows if row.device} - {home})
    if devices:
        reason = f"timed on {', '.join(devices)} here, on {home} in print"
        yield Cause(reason=reason, undone=lambda rows: [_as_timed(row, said) for row in rows])
    elif published and _are_means(said, published):
        step = 10**-published.decimals / published.runs
        reason = (
            f"one run here, in print the mean of {published.runs} "
            f"(every printed runtime is a multiple of {step:g} ms)"
        )
        yield Cause(
            reason=reason,
            undone=lambda rows: [
                _as_timed(row, said) if over_pictures(row) else row for row in rows
            ],
        )


def _are_means(said: Print, published: Published) -> bool:
    """Whether every printed runtime is a mean of so many print-outs."""
    units = published.runs * 10**published.decimals
    times = [
        value for each in said.values() for c in RUNTIMES if (value := number(each.get(c, "")))
    ]
    return bool(times) and all(abs(time * units - round(time * units)) < 1e-6 for time in times)


def _as_timed(row: Row, said: Print) -> Row:
    """The row with the printed runtimes, no longer relative to a baseline timed in turn."""
    known = said.get(row.team, {})
    times = {name: value for c, name in RUNTIMES.items() if (value := number(known.get(c, "")))}
    return replace(row, baseline_ms=None, **times) if times else row
