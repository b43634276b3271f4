"""Stability of ranks: a bootstrap over the images that runtimes are means over."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from esrjax.contest.peers import baseline_runtime_ms
from esrjax.contest.rank import Ranking
from esrjax.contest.rows import Row
from esrjax.contest.scenarios import is_mean_over_images

Floats = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class RankStability:
    """95 % bootstrap intervals of a method's runtime and main rank (percentile method).

    Attributes:
        team: Name of the team.
        method: Name of the method.
        runtime_ms: Its runtime, ms.
        low_ms: Lower end of the interval of the runtime, ms.
        high_ms: Upper end of that interval, ms.
        rank: Its main rank.
        best_rank: Best rank in the interval.
        worst_rank: Worst rank in the interval.
        same_rank_fraction: Fraction of resamples in which it keeps its rank.
    """

    team: str
    method: str
    runtime_ms: float
    low_ms: float
    high_ms: float
    rank: int
    best_rank: int
    worst_rank: int
    same_rank_fraction: float


def rank_stability(ranking: Ranking, *, resamples: int = RESAMPLES) -> tuple[RankStability, ...]:
    """Return the stability of every ranked method's rank, in order.

    A resample draws images with replacement within each dataset, and the same images for all
    methods: runtimes of one image are correlated between methods, as a large image takes all of
    them longer, and independent draws would exaggerate how much ranks change. A runtime that is no
    mean over images stays as it is.

    Args:
        ranking: The ranking; without runtimes that are means over images the result is empty.
        resamples: Number of resamples.
    """
    entries = ranking.with_status("ranked")
    if not any(is_mean_over_images(entry.row) for entry in entries):
        return ()
    runtimes = np.stack([_resampled_runtime(entry.row, resamples) for entry in entries], axis=1)
    ranks = _ranks(_log_main_scores(ranking, runtimes))
    low, high = np.quantile(runtimes, [0.025, 0.975], axis=0)
    best, worst = np.quantile(ranks, [0.025, 0.975], axis=0, method="nearest")
    return tuple(
        RankStability(
            team=entry.row.team,
            method=entry.row.method,
            runtime_ms=entry.row.runtime_ms,
            low_ms=float(low[k]),
            high_ms=float(high[k]),
            rank=(rank := entry.rank("main") or 0),
            best_rank=int(best[k]),
            worst_rank=int(worst[k]),
            same_rank_fraction=float(np.mean(ranks[:, k] == rank)),
        )
        for k, entry in enumerate(entries)
    )


def _resampled_runtime(row: Row, resamples: int) -> Floats:
    """(resamples,): mean over datasets of the mean over drawn images, ms."""
    if not is_mean_over_images(row):
        return np.full(resamples, row.runtime_ms)
    datasets = [(name, s.runtime_ms) for name, s in row.series.items() if s.runtime_ms]
    means = [_draw_weights(name, len(ms), resamples) @ np.asarray(ms) for name, ms in datasets]
    return np.mean(means, axis=0)


@functools.lru_cache(maxsize=8)
def _draw_weights(name: str, num_images: int, resamples: int) -> Floats:
    """(resamples, num_images): how often each image is drawn, over `num_images`.

    The seed depends on the dataset only, so that all methods get the same draws.
    """
    rng = np.random.default_rng([num_images, *name.encode()])
    return rng.multinomial(num_images, np.full(num_images, 1 / num_images), resamples) / num_images


def _log_main_scores(ranking: Ranking, runtimes: Floats) -> Floats:
    """(resamples, methods): logarithms of the main scores."""
    entries, score = ranking.with_status("ranked"), ranking.rules.score
    baselines = np.stack([_baseline_ms(e.row, ranking, len(runtimes)) for e in entries], axis=1)
    params = [np.log(score.weights.params) + entry.log_scores["params"] for entry in entries]
    flops = [np.log(score.weights.flops) + entry.log_scores["flops"] for entry in entries]
    runtime = np.log(score.weights.runtime) + score.factor * runtimes / baselines
    return np.logaddexp(runtime, np.logaddexp(params, flops)[None])


def _baseline_ms(row: Row, ranking: Ranking, resamples: int) -> Floats:
    """(resamples,): the baseline's runtime; over the drawn images if it is a row's, ms."""
    reference = ranking.reference
    if isinstance(reference, Row) and row.baseline_ms is None:
        return _resampled_runtime(reference, resamples)
    return np.full(resamples, baseline_runtime_ms(row, reference))


def _ranks(log_scores: Floats) -> NDArray[np.int64]:
    return 1 + np.sum(log_scores[:, None, :] < log_scores[:, :, None], axis=2)
