"""A ranking as the contest prints it, cell by cell, and printed tables read back."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from esrjax.contest import results
from esrjax.contest.rank import TRACKS, Line, Ranking
from esrjax.contest.results import SourceError, UnknownSource
from esrjax.contest.rows import Row
from esrjax.contest.rules import Rules
from esrjax.contest.table import printed
from esrjax.schema import listing

Print = Mapping[str, Mapping[str, str]]  # team -> column -> text; the rank of the unranked is ""

RUNTIMES = {  # column -> field of Row
    "runtime_val_ms": "runtime_valid_ms",
    "runtime_test_ms": "runtime_test_ms",
    "runtime_avg_ms": "runtime_ms",
}
COLUMNS = (
    *("psnr_val", "psnr_test", *RUNTIMES, "params_m", "flops_g"),
    *(f"{what}_{track}" for track in TRACKS for what in ("score", "rank")),
)


def cells(ranking: Ranking) -> Print:
    """Every figure, score and rank that is known, with the decimals of the print.

    A team with several methods goes by `team, method`: a print has one line for a team.
    """
    teams = [row.team for row in ranking.rows]
    several = {team for team in teams if teams.count(team) > 1}
    return {_name(line.row, several): _line(line, ranking.rules) for line in ranking.lines}


def _name(row: Row, several: set[str]) -> str:
    return f"{row.team}, {row.method}" if row.team in several else row.team


def _line(line: Line, rules: Rules) -> dict[str, str]:
    row, decimals = line.row, rules.score.decimals
    figures = {
        "psnr_val": (row.psnr_valid, rules.floors.decimals),
        "psnr_test": (row.psnr_test, rules.floors.decimals),
        **{c: (getattr(row, name), decimals.runtime) for c, name in RUNTIMES.items()},
        "params_m": (row.params_m, decimals.params),
        "flops_g": (row.flops_g, decimals.flops),
    }
    texts = {
        c: f"{value:.{digits}f}" for c, (value, digits) in figures.items() if value is not None
    }
    for track in TRACKS:
        texts[f"score_{track}"] = printed(line.score(track))
        texts[f"rank_{track}"] = str(line.place(track) or "")
    return texts


def read(path: Path) -> Print:
    """A printed table: CSV with the columns of the published one, as many as it has."""
    if not path.is_file():
        raise UnknownSource(
            f"no table at '{path}'",
            rule="a printed table is a .csv file with a column `team`",
            remedy="check the path",
        )
    lines = results.lines(path)
    wrong = [mistake for where, held in lines for mistake in _mistakes(where, held)]
    twice = [team for team, count in Counter(h.get("team") for _, h in lines).items() if count > 1]
    wrong += [f"team {team!r} is there twice" for team in twice if team]
    if wrong or not lines:
        raise SourceError(
            f"the printed table has {listing(wrong or ['no lines'])}",
            rule=f"a column team, and numbers in the columns {', '.join(COLUMNS)}",
            place=str(path),
            remedy="mend what is listed",
        )
    return {held["team"]: {c: held[c] for c in COLUMNS if c in held} for _, held in lines}


def _mistakes(where: str, held: Mapping[str, str]) -> list[str]:
    missing = [] if held.get("team") else [f"{where}: team is missing"]
    return missing + [
        f"{where}: {column} should be a number, found {held[column]!r}"
        for column in COLUMNS
        if held.get(column) and number(held[column]) is None
    ]


def number(text: str) -> float | None:
    """What a cell says, None where it says none."""
    try:
        return float(text)
    except ValueError:
        return None
