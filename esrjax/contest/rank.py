"""Rows and rules in, a ranking out: a pure function."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from esrjax.contest.peers import baseline, baseline_ms, is_baseline, require_peers
from esrjax.contest.rows import Row
from esrjax.contest.rules import Baseline, Rules

Track = Literal["runtime", "params", "flops", "main"]
Base = Literal["own", "published"]
Figures = Literal["exact", "printed"]
TRACKS: tuple[Track, ...] = ("runtime", "params", "flops", "main")

# ranked: has ranks. unjudged: no PSNR that the floors speak of. missed: under a floor.
# baseline: the organisers' own entry.
Standing = Literal["ranked", "unjudged", "missed", "baseline"]
STANDINGS: tuple[Standing, ...] = ("ranked", "unjudged", "missed", "baseline")

_LARGEST = math.log(math.nextafter(math.inf, 0))


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method in a ranking: its figures, the logarithms of its scores, its ranks if ranked.

    missed: the sets on which it is under the floor. waived: why it is ranked all the same.
    """

    row: Row
    standing: Standing
    missed: frozenset[str]
    waived: str | None
    logs: Mapping[Track, float]  # a float holds no score of a method 355 times the baseline
    ranks: Mapping[Track, int] | None = None

    def score(self, track: Track) -> float:
        """The score, infinite where a float cannot hold it."""
        return math.exp(self.logs[track]) if self.logs[track] < _LARGEST else math.inf

    def place(self, track: Track) -> int | None:
        """The rank, None of a line that has none."""
        return self.ranks[track] if self.ranks else None

    def entry(self) -> dict[str, Any]:
        """The line for JSON, without the figures of single pictures.

        An infinite score and the rank of an unranked method are null.
        """
        scores = {track: self.score(track) for track in TRACKS}
        finite = {f"score_{k}": v if math.isfinite(v) else None for k, v in scores.items()}
        ranks = {f"rank_{track}": self.place(track) for track in TRACKS}
        ranked = {"ranked": self.standing == "ranked", "standing": self.standing}
        figures = asdict(replace(self.row, series={}, provenance={}))
        del figures["series"], figures["provenance"]
        return {"team": self.row.team, **finite, **ranks, **ranked, **figures}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Every row that was given, by standing and then by main score.

    reference: the figures that the scores are relative to. floors: whether a PSNR was asked for.
    figures: whether scores are made of what was measured, or of what the contest prints of it.
    """

    rules: Rules
    reference: Row | Baseline
    lines: tuple[Line, ...]
    floors: bool = True
    figures: Figures = "exact"

    @property
    def base(self) -> Base:
        """Whose baseline the scores are relative to."""
        return "published" if isinstance(self.reference, Baseline) else "own"

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of all lines, in their order."""
        return tuple(line.row for line in self.lines)

    def of(self, standing: Standing) -> tuple[Line, ...]:
        """The lines of one standing, in order."""
        return tuple(line for line in self.lines if line.standing == standing)

    @property
    def notes(self) -> tuple[str, ...]:
        """The exceptions that were made, and the figures that are not what they seem."""
        said = [
            f"{line.row.team}: {text}."
            for line in self.lines
            for text in (line.waived, *self.rules.noted(line.row.team, line.row.flops_g))
            if text
        ]
        return tuple(said)


def rank(
    rows: Iterable[Row],
    rules: Rules,
    *,
    base: Base = "own",
    figures: Figures = "exact",
    floors: bool = True,
) -> Ranking:
    """Scores every row and ranks those that qualify.

    base: relative to the baseline among the rows, or to its published figures.
    figures: as measured, or first rounded as the contest prints them.
    floors: whether rows must reach the PSNR of the rules; else all but the baseline are ranked.
    """
    given = [_printed(row, rules) if figures == "printed" else row for row in rows]
    reference = rules.baseline if base == "published" else baseline(given, rules)
    require_peers(given, reference)
    lines = [_line(row, reference, rules, floors) for row in given]
    field = [line.logs for line in lines if line.standing == "ranked"]
    placed = [_place(line, field) if line.standing == "ranked" else line for line in lines]
    ordered = tuple(sorted(placed, key=_order))
    return Ranking(rules=rules, reference=reference, lines=ordered, floors=floors, figures=figures)


def again(
    ranking: Ranking,
    *,
    rows: Iterable[Row] | None = None,
    rules: Rules | None = None,
    base: Base | None = None,
    figures: Figures | None = None,
) -> Ranking:
    """The ranking with something changed and all else as it was."""
    return rank(
        ranking.rows if rows is None else rows,
        rules or ranking.rules,
        base=base or ranking.base,
        figures=figures or ranking.figures,
        floors=ranking.floors,
    )


def _line(row: Row, reference: Row | Baseline, rules: Rules, floors: bool) -> Line:
    missed = _missed(row, rules) if floors else frozenset[str]()
    waived = rules.waiver(row.team) if missed else None
    judged = not floors or (row.psnr_valid is not None and row.psnr_test is not None)
    if is_baseline(row, rules):
        standing = "baseline"
    elif missed and not waived:
        standing = "missed"
    else:
        standing = "ranked" if judged else "unjudged"
    logs = _logs(row, reference, rules)
    return Line(row=row, standing=standing, missed=missed, waived=waived, logs=logs)


def _missed(row: Row, rules: Rules) -> frozenset[str]:
    """The sets on which a rounded PSNR is under its floor."""
    floors = rules.floors
    asked = (("valid", row.psnr_valid, floors.valid), ("test", row.psnr_test, floors.test))
    return frozenset(
        name
        for name, psnr, floor in asked
        if psnr is not None and round(psnr, floors.decimals) < floor
    )


def _logs(row: Row, reference: Row | Baseline, rules: Rules) -> dict[Track, float]:
    """Equations 1 and 2 of the report, as logarithms."""
    factor, weights = rules.score.factor, rules.score.weights
    logs: dict[Track, float] = {
        "runtime": factor * row.runtime_ms / baseline_ms(row, reference),
        "params": factor * row.params_m / reference.params_m,
        "flops": factor * row.flops_g / reference.flops_g,
    }
    top = max(logs.values())
    parts = (getattr(weights, track) * math.exp(log - top) for track, log in logs.items())
    return {**logs, "main": top + math.log(sum(parts))}


def _place(line: Line, field: Sequence[Mapping[Track, float]]) -> Line:
    """Ranks from 1; equal scores share the better one and the next is skipped."""
    better = {t: sum(other[t] < line.logs[t] for other in field) for t in TRACKS}
    return replace(line, ranks={track: 1 + count for track, count in better.items()})


def _order(line: Line) -> tuple[int, float, str, str]:
    return STANDINGS.index(line.standing), line.logs["main"], line.row.team, line.row.method


def _printed(row: Row, rules: Rules) -> Row:
    decimals = rules.score.decimals
    return replace(
        row,
        runtime_ms=round(row.runtime_ms, decimals.runtime),
        params_m=round(row.params_m, decimals.params),
        flops_g=round(row.flops_g, decimals.flops),
    )
