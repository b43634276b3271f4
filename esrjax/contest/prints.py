"""Published tables: the cells of a ranking at published precision, and a reader of CSV tables."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from esrjax.contest import results
from esrjax.contest.rank import TRACKS, RankedEntry, Ranking
from esrjax.contest.results import SourceError, UnknownSource
from esrjax.contest.rows import Row
from esrjax.contest.rules import Rules
from esrjax.contest.table import format_score
from esrjax.schema import bullet_list

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
        UnknownSource: No such file, or it is no CSV table.
        SourceError: Cells are not numbers, or a team is missing or duplicate; all are listed.
    """
    if not path.is_file():
        raise UnknownSource(
            f"No such file: '{path}'",
            rule="a published table is a .csv file with a column `team`",
            remedy="check the path",
        )
    lines = results.read_csv(path)
    problems = [problem for line, cells in lines for problem in _cell_problems(line, cells)]
    teams = [t for t, count in Counter(c.get("team") for _, c in lines).items() if count > 1]
    problems += [f"team {team!r} is duplicate" for team in teams if team]
    if problems or not lines:
        raise SourceError(
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
