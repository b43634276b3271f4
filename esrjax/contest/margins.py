"""Margins of each method: to the next ranks in runtime, and to the PSNR thresholds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esrjax.contest.peers import baseline_runtime_ms
from esrjax.contest.rank import RankedEntry, Ranking

STEP_MS = 0.1  # speed-up whose effect on the main score is reported


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Distances of a method to its neighbours in the ranking and to the thresholds.

    Attributes:
        team: Name of the team.
        method: Name of the method.
        score_drop: Fraction by which the main score drops if the method gets `STEP_MS` faster; None
            if it is not ranked.
        speedup_to_next_ms: Speed-up that gives the next better main score, ms; None if runtime
            alone cannot reach it.
        slack_ms: Slow-down after which the next method gets the better main score, ms.
        psnr_margin_mdb: Split -> PSNR minus the lowest PSNR that still rounds up to the threshold,
            0.001 dB; negative if the method is below the threshold.
        passes_by_rounding: Splits on which the method reaches the threshold only after rounding.
    """

    team: str
    method: str
    score_drop: float | None
    speedup_to_next_ms: float | None
    slack_ms: float | None
    psnr_margin_mdb: Mapping[str, float]
    passes_by_rounding: frozenset[str]


def compute_margins(ranking: Ranking) -> tuple[Margin, ...]:
    """Return the margins of every method that is ranked or below a threshold, in order."""
    ranked, below = ranking.with_status("ranked"), ranking.with_status("below_threshold")
    of_ranked = [_margin(ranking, entry, *_neighbours(entry, ranked)) for entry in ranked]
    return (*of_ranked, *(_margin(ranking, entry, None, None) for entry in below))


def _neighbours(
    entry: RankedEntry, ranked: Sequence[RankedEntry]
) -> tuple[RankedEntry | None, RankedEntry | None]:
    """The next entry with a better main score, and the next with an equal or worse one."""
    main = entry.log_scores["main"]
    better = [other for other in ranked if other.log_scores["main"] < main]
    others = [other for other in ranked if other.log_scores["main"] >= main and other is not entry]
    return better[-1] if better else None, others[0] if others else None


def _margin(
    ranking: Ranking, entry: RankedEntry, better: RankedEntry | None, worse: RankedEntry | None
) -> Margin:
    thresholds = _thresholds(ranking, entry)
    return Margin(
        team=entry.row.team,
        method=entry.row.method,
        score_drop=_score_drop(ranking, entry) if entry.ranks else None,
        speedup_to_next_ms=_distance_ms(ranking, entry, better),
        slack_ms=_distance_ms(ranking, entry, worse),
        psnr_margin_mdb={
            split: _psnr_margin_mdb(ranking, psnr, threshold)
            for split, psnr, threshold in thresholds
        },
        passes_by_rounding=frozenset(
            split
            for split, psnr, threshold in thresholds
            if psnr < threshold and split not in entry.below_threshold
        ),
    )


def _thresholds(ranking: Ranking, entry: RankedEntry) -> list[tuple[str, float, float]]:
    """(split, PSNR, threshold) for every threshold that applies to the method."""
    thresholds, row = ranking.rules.psnr_thresholds, entry.row
    splits = (
        ("valid", row.psnr_valid, thresholds.valid),
        ("test", row.psnr_test, thresholds.test),
    )
    return [
        (split, psnr, threshold)
        for split, psnr, threshold in splits
        if ranking.apply_thresholds and psnr
    ]


def _psnr_margin_mdb(ranking: Ranking, psnr: float, threshold: float) -> float:
    lowest = threshold - 0.5 * 10**-ranking.rules.psnr_thresholds.decimals
    return (psnr - lowest) * 1000


def _score_drop(ranking: Ranking, entry: RankedEntry) -> float:
    """`1 - score(t - STEP_MS) / score(t)`, with the other two scores unchanged."""
    # Fraction of the main score that comes from the runtime.
    fraction = math.exp(math.log(ranking.rules.score.weights.runtime) + _log_runtime_ratio(entry))
    return fraction * -math.expm1(-_log_score_per_ms(ranking, entry) * STEP_MS)


def _log_runtime_ratio(entry: RankedEntry) -> float:
    """Logarithm of the runtime score over the main score."""
    return entry.log_scores["runtime"] - entry.log_scores["main"]


def _log_score_per_ms(ranking: Ranking, entry: RankedEntry) -> float:
    """Change of the logarithm of the runtime score per millisecond."""
    return ranking.rules.score.factor / baseline_runtime_ms(entry.row, ranking.reference)


def _distance_ms(ranking: Ranking, entry: RankedEntry, other: RankedEntry | None) -> float | None:
    """Distance from an entry's runtime to the one that gives it the main score of the other."""
    if other is None:
        return None
    weights, other_log = ranking.rules.score.weights, other.log_scores["runtime"]
    # What params and FLOPs add to this entry's main score beyond the other's, over the weighted
    # runtime score of the other; the runtime score must be lower by that much.
    excess = sum(
        getattr(weights, name)
        / weights.runtime
        * math.exp(other.log_scores[name] - other_log)
        * math.expm1(entry.log_scores[name] - other.log_scores[name])
        for name in ("params", "flops")
    )
    if excess >= 1:
        return None
    runtime_ms = (other_log + math.log1p(-excess)) / _log_score_per_ms(ranking, entry)
    return abs(entry.row.runtime_ms - runtime_ms) if runtime_ms > 0 else None
