"""Comparison of a ranking with a published table, cell by cell, with the causes of differences."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path

from esrjax.challenge.rank import TRACKS, RankedEntry, Ranking, rerank, round_figures
from esrjax.challenge.results import FIGURE_COLUMNS, Row
from esrjax.challenge.rules import Note, PublishedRuntimes, Rules
from esrjax.challenge.sensitivity import Rows, alternate_rows, replace_row, scored_series
from esrjax.challenge.source_files import OnNote, read_csv
from esrjax.challenge.table import format_score
from esrjax.errors import NotFound, UnreadableFile
from esrjax.schema import bullet_list

# Team -> column -> text of the cell; the rank of an unranked team is "".
PublishedTable = Mapping[str, Mapping[str, str]]
RUNTIME_COLUMNS = {c: name for c, name in FIGURE_COLUMNS.items() if c.startswith("runtime")}
COLUMNS = (
    *FIGURE_COLUMNS,
    *(f"{prefix}_{track}" for track in TRACKS for prefix in ("score", "rank")),
)

# --- published tables ---


def table_cells(ranking: Ranking) -> PublishedTable:
    """Return every known figure, score and rank of a ranking at published precision.

    A published table has one line for each team; a team with several methods in the ranking gets
    one line for each, called `team, method`.
    """
    num_methods = Counter(row.team for row in ranking.rows)
    table: dict[str, dict[str, str]] = {}
    for entry in ranking.entries:
        team, method = entry.row.team, entry.row.method
        line = f"{team}, {method}" if num_methods[team] > 1 else team
        table[line] = _line_cells(entry, ranking.rules)
    return table


def _line_cells(entry: RankedEntry, rules: Rules) -> dict[str, str]:
    decimals = {"psnr": rules.psnr_thresholds.decimals, **asdict(rules.score.decimals)}
    figures = {column: getattr(entry.row, name) for column, name in FIGURE_COLUMNS.items()}
    cells = {
        column: f"{value:.{decimals[column.split('_')[0]]}f}"
        for column, value in figures.items()
        if value is not None
    }
    for track in TRACKS:
        cells[f"score_{track}"] = format_score(entry.score(track))
        cells[f"rank_{track}"] = str(entry.rank(track) or "")
    return cells


def read_table(path: Path, on_note: OnNote = lambda _: None) -> PublishedTable:
    """Read a published table: CSV with a column `team` and any of `COLUMNS`.

    Args:
        path: The table.
        on_note: Receives what was assumed, such as decimal commas.

    Raises:
        NotFound: No such file, or it is no CSV table.
        UnreadableFile: Lines do not fit the header, cells are not numbers, or a team is missing or
            duplicate; all are listed.
    """
    if not os.path.isfile(path):
        raise NotFound(
            f"No such file: '{path}'",
            rule="a published table is a .csv file with a column `team`",
            remedy="check the path",
        )
    lines, problems = read_csv(path, on_note), list[str]()
    for line, cells in lines:
        problems += [] if cells.get("team") else [f"{line}: team is missing"]
        problems += [
            f"{line}: {column} should be a number, found {cells[column]!r}"
            for column in COLUMNS
            if cells.get(column) and parse_number(cells[column]) is None
        ]
    places: dict[str, list[str]] = {}
    for line, cells in lines:
        places.setdefault(cells.get("team", ""), []).append(line)
    problems += [
        f"team {team!r} is duplicate: {' and '.join(same)}"
        for team, same in places.items()
        if team and len(same) > 1
    ]
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


def parse_number(text: str) -> float | None:
    """Return the number in a cell, or None if there is none."""
    try:
        return float(text)
    except ValueError:
        return None


# --- differences from a published table ---


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
        published: The published table, for example from `read_table`.
    """
    cells_without = _cells_without_causes(ranking, _causes(ranking, published))
    computed = cells_without[()]
    unmatched = computed.keys() ^ published.keys()
    is_equal: dict[str, list[bool]] = {}  # column -> whether each of its cells is equal
    cell_diffs: list[CellDiff] = []
    for team, column in [(team, column) for team, cells in computed.items() for column in cells]:
        own, printed = computed[team][column], published.get(team, {}).get(column)
        if printed is None or (unmatched and column.startswith("rank")):
            continue
        reasons = (r for r, table in cells_without.items() if _equal(table[team], column, printed))
        fewest = next(reasons, None)
        is_equal.setdefault(column, []).append(fewest == ())
        if fewest != ():
            diff = CellDiff(
                team=team, column=column, computed=own, published=printed, reasons=fewest or ()
            )
            cell_diffs.append(diff)
    return TableDiff(
        agreement={column: (sum(equal), len(equal)) for column, equal in is_equal.items()},
        cell_diffs=tuple(cell_diffs),
        unmatched_teams=tuple(sorted(unmatched)),
    )


def _cells_without_causes(
    ranking: Ranking, causes: Mapping[str, Callable[[Rows], Rows]]
) -> dict[tuple[str, ...], PublishedTable]:
    """Reasons -> cells of the ranking without these causes; the smallest sets come first."""
    tables: dict[tuple[str, ...], PublishedTable] = {}
    for count in range(len(causes) + 1):
        for reasons in combinations(causes, count):
            rows: Rows = ranking.rows
            for reason in reasons:
                rows = causes[reason](rows)
            tables[reasons] = table_cells(rerank(ranking, rows=rows))
    return tables


def _equal(cells: Mapping[str, str], column: str, published: str) -> bool:
    """Whether a cell is the same as text or as a number (4 and 4.000)."""
    computed = cells.get(column, "")
    number = parse_number(computed)
    return computed == published or (number is not None and number == parse_number(published))


def _causes(ranking: Ranking, published: PublishedTable) -> dict[str, Callable[[Rows], Rows]]:
    """Known differences from the table, the most specific first.

    Returns:
        Reason in words -> function that returns the rows as they would be without it.
    """
    rules, rows = ranking.rules, ranking.rows
    causes: dict[str, Callable[[Rows], Rows]] = {
        note.text: functools.partial(_swap_flops, note)
        for note in rules.notes
        if any(alternate_rows(rows, note))
    }
    # The organisers scored the rounded figures of their table, not the exact ones.
    decimals = rules.score.decimals
    causes[
        f"the published scores use parameters rounded to {decimals.params} decimals and "
        f"FLOPs rounded to {decimals.flops}"
    ] = lambda rows: [replace(round_figures(r, rules), runtime_ms=r.runtime_ms) for r in rows]
    runtimes, official_device = rules.published_runtimes, rules.baseline.device
    devices = sorted({row.device for row in rows if row.device} - {official_device})
    if devices:
        reason = f"timed on {', '.join(devices)} here, on {official_device} in the published table"
        causes[reason] = lambda rows: [_published_timing(row, published) for row in rows]
    elif runtimes and _are_means(published, runtimes):
        step = 10**-runtimes.decimals / runtimes.runs
        causes[
            f"one run here, the published runtimes are means of {runtimes.runs} runs "
            f"(each of them is a multiple of {step:g} ms)"
        ] = lambda rows: [
            _published_timing(row, published) if scored_series(row) else row for row in rows
        ]
    return causes


def _swap_flops(note: Note, rows: Rows) -> Rows:
    """The rows that have the one figure of a note, with the other one."""
    return functools.reduce(replace_row, alternate_rows(rows, note), rows)


def _are_means(published: PublishedTable, runtimes: PublishedRuntimes) -> bool:
    """Whether every published runtime can be a mean of that many rounded runs."""
    times = [time for cells in published.values() for time in _published_runtimes(cells).values()]
    units = [time * (runtimes.runs * 10**runtimes.decimals) for time in times]
    return bool(units) and all(abs(count - round(count)) < 1e-6 for count in units)


def _published_timing(row: Row, published: PublishedTable) -> Row:
    """The row with published runtimes, and no longer scored against an interleaved baseline."""
    times = _published_runtimes(published.get(row.team, {}))
    return replace(row, baseline_ms=None, **times) if times else row


def _published_runtimes(cells: Mapping[str, str]) -> dict[str, float]:
    """Field of Row -> published runtime, ms, where there is one."""
    times = {name: parse_number(cells.get(c, "")) for c, name in RUNTIME_COLUMNS.items()}
    return {name: time for name, time in times.items() if time}
