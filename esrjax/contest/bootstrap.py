"""How far runtimes and ranks hold: resampling of the pictures that the runtime is a mean over."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esrjax.contest.peers import baseline_ms
from esrjax.contest.rank import Ranking
from esrjax.contest.rows import Row
from esrjax.contest.scenarios import over_pictures

Floats = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The 95 % bootstrap intervals of a method's runtime and main rank (percentile method).

    held: the share of resamples in which it has the rank that it has.
    """

    team: str
    method: str
    runtime_ms: float
    low_ms: float
    high_ms: float
    rank: int
    best: int
    worst: int
    held: float


def spreads(ranking: Ranking, *, resamples: int = RESAMPLES) -> tuple[Spread, ...]:
    """One for every ranked method, in order; none where no runtime is a mean over pictures.

    The same pictures are drawn for all methods, within each set, so that what large pictures cost
    everyone is no reason for a rank to change. A runtime that is no such mean stays as it is.
    """
    lines = ranking.of("ranked")
    if not any(over_pictures(line.row) for line in lines):
        return ()
    runtimes = np.stack([_runtime(line.row, resamples) for line in lines], axis=1)
    ranks = _ranks(_mains(ranking, runtimes))
    low, high = np.quantile(runtimes, [0.025, 0.975], axis=0)
    best, worst = np.quantile(ranks, [0.025, 0.975], axis=0, method="nearest")
    return tuple(
        Spread(
            team=line.row.team,
            method=line.row.method,
            runtime_ms=line.row.runtime_ms,
            low_ms=float(low[k]),
            high_ms=float(high[k]),
            rank=(place := line.place("main") or 0),
            best=int(best[k]),
            worst=int(worst[k]),
            held=float(np.mean(ranks[:, k] == place)),
        )
        for k, line in enumerate(lines)
    )


def _runtime(row: Row, resamples: int) -> Floats:
    """`(resamples,)`: the mean over sets of the mean over drawn pictures, ms."""
    if not over_pictures(row):
        return np.full(resamples, row.runtime_ms)
    sets = [(name, each.runtime_ms) for name, each in row.series.items() if each.runtime_ms]
    means = [_shares(name, len(times), resamples) @ np.asarray(times) for name, times in sets]
    return np.mean(means, axis=0)


@functools.lru_cache(maxsize=8)
def _shares(name: str, pictures: int, resamples: int) -> Floats:
    """`(resamples, pictures)`: how often each is drawn, alike for all methods, by share."""
    random = np.random.default_rng([pictures, *name.encode()])
    return random.multinomial(pictures, np.full(pictures, 1 / pictures), resamples) / pictures


def _mains(ranking: Ranking, runtimes: Floats) -> Floats:
    """The logarithms of the main scores, `(resamples, methods)`."""
    lines, score = ranking.of("ranked"), ranking.rules.score
    bases = np.stack([_base(line.row, ranking, len(runtimes)) for line in lines], axis=1)
    params = [np.log(score.weights.params) + line.logs["params"] for line in lines]
    flops = [np.log(score.weights.flops) + line.logs["flops"] for line in lines]
    runtime = np.log(score.weights.runtime) + score.factor * runtimes / bases
    return np.logaddexp(runtime, np.logaddexp(params, flops)[None])


def _base(row: Row, ranking: Ranking, resamples: int) -> Floats:
    """`(resamples,)`: the baseline's runtime, over the drawn pictures where it is the row's own."""
    reference = ranking.reference
    if isinstance(reference, Row) and row.baseline_ms is None:
        return _runtime(reference, resamples)
    return np.full(resamples, baseline_ms(row, reference))


def _ranks(mains: Floats) -> NDArray[np.int64]:
    return 1 + np.sum(mains[:, None, :] < mains[:, :, None], axis=2)
