"""What a millisecond or a thousandth of a decibel is worth to each method."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esrjax.contest.peers import baseline_ms
from esrjax.contest.rank import Line, Ranking

STEP_MS = 0.1


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How far a method is from its neighbours and from the floors.

    step: by which part its main score shrinks when it is STEP_MS faster. gain_ms: how much faster
    it must be for the next better main score; None where runtime alone cannot bring it.
    spare_ms: how much slower it may become before the next one passes it. spare_mdb: set -> how
    far its PSNR is above the least that qualifies, in 0.001 dB; below 0 it misses it.
    rounded: sets on which only rounding lifts it over the floor.
    """

    team: str
    method: str
    step: float | None
    gain_ms: float | None
    spare_ms: float | None
    spare_mdb: Mapping[str, float]
    rounded: frozenset[str]


def margins(ranking: Ranking) -> tuple[Margin, ...]:
    """One for every method that a floor is asked of, in order."""
    ranked, missed = ranking.of("ranked"), ranking.of("missed")
    first = [_margin(ranking, line, *_neighbours(line, ranked)) for line in ranked]
    return (*first, *(_margin(ranking, line, None, None) for line in missed))


def _neighbours(line: Line, ranked: Sequence[Line]) -> tuple[Line | None, Line | None]:
    """The next that is better, and the next that is not, which may be as good."""
    main = line.logs["main"]
    better = [other for other in ranked if other.logs["main"] < main]
    others = [other for other in ranked if other.logs["main"] >= main and other is not line]
    return better[-1] if better else None, others[0] if others else None


def _margin(ranking: Ranking, line: Line, better: Line | None, worse: Line | None) -> Margin:
    asked = _asked(ranking, line)
    return Margin(
        team=line.row.team,
        method=line.row.method,
        step=_step(ranking, line) if line.ranks else None,
        gain_ms=_distance(ranking, line, better),
        spare_ms=_distance(ranking, line, worse),
        spare_mdb={name: _spare_mdb(ranking, psnr, floor) for name, psnr, floor in asked},
        rounded=frozenset(
            name for name, psnr, floor in asked if psnr < floor and name not in line.missed
        ),
    )


def _asked(ranking: Ranking, line: Line) -> list[tuple[str, float, float]]:
    """(set, PSNR, floor) for every floor that is asked of the method."""
    floors, row = ranking.rules.floors, line.row
    every = (("valid", row.psnr_valid, floors.valid), ("test", row.psnr_test, floors.test))
    return [(name, psnr, floor) for name, psnr, floor in every if ranking.floors and psnr]


def _spare_mdb(ranking: Ranking, psnr: float, floor: float) -> float:
    least = floor - 0.5 * 10**-ranking.rules.floors.decimals
    return (psnr - least) * 1000


def _step(ranking: Ranking, line: Line) -> float:
    """`1 - score(t - STEP_MS) / score(t)`."""
    share = math.exp(math.log(ranking.rules.score.weights.runtime) + _excess(line))
    return share * -math.expm1(-_per_ms(ranking, line) * STEP_MS)


def _excess(line: Line) -> float:
    return line.logs["runtime"] - line.logs["main"]


def _per_ms(ranking: Ranking, line: Line) -> float:
    """What a millisecond adds to the logarithm of the runtime score."""
    return ranking.rules.score.factor / baseline_ms(line.row, ranking.reference)


def _distance(ranking: Ranking, line: Line, other: Line | None) -> float | None:
    """How many ms lie between its runtime and the one at which its main score is the other's."""
    if other is None:
        return None
    weights, theirs = ranking.rules.score.weights, other.logs["runtime"]
    more = sum(  # than the other has, as a share of what its runtime scores
        getattr(weights, name)
        / weights.runtime
        * math.exp(other.logs[name] - theirs)
        * math.expm1(line.logs[name] - other.logs[name])
        for name in ("params", "flops")
    )
    if more >= 1:
        return None
    runtime_ms = (theirs + math.log1p(-more)) / _per_ms(ranking, line)
    return abs(line.row.runtime_ms - runtime_ms) if runtime_ms > 0 else None
