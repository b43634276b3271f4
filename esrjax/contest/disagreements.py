"""Comparison of a ranking with a published table, cell by cell, with reasons for differences."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from esrjax.contest.prints import RUNTIME_COLUMNS, PublishedTable, parse_number, table_cells
from esrjax.contest.rank import Ranking, rerank
from esrjax.contest.rows import Row
from esrjax.contest.rules import Note, PublishedRuntimes, Rules
from esrjax.contest.scenarios import alternate_rows, is_mean_over_images, replace_row

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
        published: The published table, for example from `esrjax.contest.prints.read_table`.
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
