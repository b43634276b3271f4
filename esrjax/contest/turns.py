"""Calls timed in turn, A B C A B C, so that drift of the machine falls on all alike."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import numpy as np

Key = TypeVar("Key", bound=Hashable)
Call = Callable[[], Any]

WARM_UP = 2  # rounds after the first call that do not count
FEWEST, MOST = 5, 1000  # runs where a budget decides


@dataclass(frozen=True, kw_only=True)
class Turns(Generic[Key]):
    """Milliseconds of every call. first: before all rounds. rounds: one turn of each, in order."""

    first: Mapping[Key, float]
    rounds: Sequence[Mapping[Key, float]]

    def samples(self, key: Key) -> list[float]:
        """The turns of one call, round by round."""
        return [each[key] for each in self.rounds]

    def ratios(self, key: Key, base: Key) -> list[float]:
        """One call over another, round by round: what slowed a round down slowed both."""
        return [each[key] / each[base] for each in self.rounds]


def turns(
    calls: Mapping[Key, Call],
    *,
    budget_s: float = 2.0,
    repeats: int | None = None,
    settled: bool = False,
) -> Turns[Key]:
    """Times calls in turn; each gets `repeats` runs, or what fits into about `budget_s` seconds.

    What fits is 5 to 1000 runs of each. settled: each timed call follows one of its own that is
    not timed, so that threads of another have gone to sleep and its own are awake, one on a core.
    """
    first = _round(calls)
    warm = [_round(calls) for _ in range(WARM_UP)][-1]
    runs = repeats or _affordable(budget_s * len(calls), sum(warm.values()) * (1 + settled))
    return Turns(first=first, rounds=[_round(calls, settled=settled) for _ in range(runs)])


def ms(call: Call) -> float:
    """One call, until its result is there."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return (time.perf_counter() - start) * 1e3


def interval(samples: Sequence[float], *, resamples: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the median (percentile method, fixed seed)."""
    drawn = np.random.default_rng(0).choice(samples, (resamples, len(samples)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def _round(calls: Mapping[Key, Call], *, settled: bool = False) -> dict[Key, float]:
    return {key: _settled(call) if settled else ms(call) for key, call in calls.items()}


def _settled(call: Call) -> float:
    ms(call)
    return ms(call)


def _affordable(budget_s: float, round_ms: float) -> int:
    return min(MOST, max(FEWEST, int(budget_s * 1e3 / round_ms)))
