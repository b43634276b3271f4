"""Rows and rules in, a ranking out: a pure function."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from esrjax.contest.results import Row
from esrjax.contest.rules import Baseline, Rules
from esrjax.errors import UserError
from esrjax.schema import listing

Track = Literal["runtime", "params", "flops", "main"]
TRACKS: tuple[Track, ...] = ("runtime", "params", "flops", "main")

# ranked: has ranks. unjudged: no PSNR that the floors speak of. missed: under a floor.
# baseline: the organisers' own entry.
Standing = Literal["ranked", "unjudged", "missed", "baseline"]
STANDINGS: tuple[Standing, ...] = ("ranked", "unjudged", "missed", "baseline")

_TRAITS = ("device", "conditions", "spec")
_LARGEST = math.log(math.nextafter(math.inf, 0))


class MixedRows(UserError):
    """Rows that were not measured in the same way."""


class BaselineError(UserError):
    """No baseline to score against, or more than one."""


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

    def entry(self) -> dict[str, Any]:
        """The line for JSON: an infinite score and the rank of an unranked method are null."""
        scores = {track: self.score(track) for track in TRACKS}
        finite = {f"score_{k}": v if math.isfinite(v) else None for k, v in scores.items()}
        ranks = {f"rank_{track}": self.ranks and self.ranks[track] for track in TRACKS}
        ranked = {"ranked": self.standing == "ranked", "standing": self.standing}
        return {"team": self.row.team, **finite, **ranks, **ranked, **asdict(self.row)}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Every row that was given, by standing and then by main score.

    reference: the figures that the scores are relative to. floors: whether a PSNR was asked for.
    """

    rules: Rules
    reference: Row | Baseline
    lines: tuple[Line, ...]
    floors: bool = True

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
    base: Literal["own", "published"] = "own",
    figures: Literal["exact", "printed"] = "exact",
    floors: bool = True,
) -> Ranking:
    """Scores every row and ranks those that qualify.

    base: relative to the baseline among the rows, or to its published figures.
    figures: as measured, or first rounded as the contest prints them.
    floors: whether rows must reach the PSNR of the rules; else all but the baseline are ranked.
    """
    given = [_printed(row, rules) if figures == "printed" else row for row in rows]
    reference = rules.baseline if base == "published" else _baseline(given, rules)
    _same(given, reference)
    lines = [_line(row, reference, rules, floors) for row in given]
    field = [line.logs for line in lines if line.standing == "ranked"]
    placed = [_place(line, field) if line.standing == "ranked" else line for line in lines]
    ordered = tuple(sorted(placed, key=_order))
    return Ranking(rules=rules, reference=reference, lines=ordered, floors=floors)


def _line(row: Row, reference: Row | Baseline, rules: Rules, floors: bool) -> Line:
    missed = _missed(row, rules) if floors else frozenset[str]()
    waived = rules.waiver(row.team) if missed else None
    judged = not floors or (row.psnr_valid is not None and row.psnr_test is not None)
    if _is_baseline(row, rules):
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
        "runtime": factor * row.runtime_ms / reference.runtime_ms,
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


def _is_baseline(row: Row, rules: Rules) -> bool:
    return row.team == rules.baseline.team or row.method == rules.baseline.method


def _baseline(rows: Sequence[Row], rules: Rules) -> Row:
    """The one row of the baseline, with costs that others can be divided by."""
    found = [r for r in rows if _is_baseline(r, rules) and r.params_m > 0 and r.flops_g > 0]
    if len(found) == 1:
        return found[0]
    raise BaselineError(
        f"{len(found) or 'no'} usable rows of the baseline {rules.baseline.method!r}",
        rule="scores are ratios to one baseline, timed on the same machine in the same way",
        remedy=f"measure {rules.baseline.method!r} once beside the others, "
        "or, for times of the contest's own machine, take the published baseline",
    )


def _same(rows: Sequence[Row], reference: Row | Baseline) -> None:
    """Refuses rows that cannot be compared, saying who has what."""
    device = reference.device or "unknown"
    found = [mixture for trait in _TRAITS if (mixture := _mixture(rows, trait))]
    if isinstance(reference, Baseline):
        strange = {row.device for row in rows} - {None, device}
        found += [f"device: {device} (published baseline), {other} (rows)" for other in strange]
    if not found:
        return
    raise MixedRows(
        f"the rows differ in {listing(found, 'respect')}",
        rule="one device, one way of timing and one metric in a ranking",
        remedy="measure all of them, the baseline too, in the same way on one machine",
    )


def _mixture(rows: Sequence[Row], trait: str) -> str | None:
    """`trait: value (methods), other value (methods)`, or None where all agree."""
    held: dict[str, list[str]] = {}
    for row in rows:
        held.setdefault(getattr(row, trait) or "unknown", []).append(row.method)
    said = [f"{value} ({', '.join(methods)})" for value, methods in sorted(held.items())]
    return f"{trait}: {', '.join(said)}" if len(said) > 1 else None
