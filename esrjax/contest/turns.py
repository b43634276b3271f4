"""Interleaved timing of calls (A B C A B C), so that drift of the machine affects all alike."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jax
import numpy as np

Key = TypeVar("Key", bound=Hashable)
Call = Callable[[], Any]

WARMUP_ROUNDS = 2  # untimed rounds after the first call
MIN_RUNS, MAX_RUNS = 5, 1000  # limits on the number of runs that a budget allows


@dataclass(frozen=True, kw_only=True)
class InterleavedTimings(Generic[Key]):
    """Runtimes of several calls that were timed in interleaved rounds.

    Attributes:
        first_ms: Runtime of the first run of each call, before the warm-up.
        rounds_ms: Runtimes of each round, in which every call ran once, in order.
    """

    first_ms: Mapping[Key, float]
    rounds_ms: Sequence[Mapping[Key, float]]

    def samples_ms(self, key: Key) -> list[float]:
        """Return the runtimes of one call, round by round."""
        return [round_ms[key] for round_ms in self.rounds_ms]

    def ratios(self, key: Key, base: Key) -> list[float]:
        """Return the runtime of one call divided by that of another, round by round.

        Ratios within a round are less noisy than the ratio of medians: whatever slowed the machine
        down during that round slowed both calls.
        """
        return [round_ms[key] / round_ms[base] for round_ms in self.rounds_ms]


def time_interleaved(
    calls: Mapping[Key, Call],
    *,
    budget_s: float = 2.0,
    num_runs: int | None = None,
    prime_before_each: bool = False,
) -> InterleavedTimings[Key]:
    """Time several calls in interleaved rounds, after a first call and a warm-up of each.

    Args:
        calls: Calls by name; what a call returns is waited for with `jax.block_until_ready`.
        budget_s: Seconds to spend on each call, which gives between 5 and 1000 runs of it.
        num_runs: Number of runs of each call; None derives it from the budget.
        prime_before_each: Run each call once untimed right before its timed run. Needed when the
            calls belong to different runtimes (JAX, ONNX Runtime, PyTorch) with thread pools of
            their own: threads of the previous call still spin on the cores, and those of this call
            are asleep. The untimed run gives the former time to sleep and wakes the latter (SPANV2
            at 128x128 in JAX: 21 ms without it, 14.6 ms with it; docs/benchmarks.md).
    """
    first_ms = _time_round(calls)
    # The last warm-up round also estimates how many rounds fit into the budget.
    warmup_ms = [_time_round(calls) for _ in range(WARMUP_ROUNDS)][-1]
    runs = num_runs or _runs_within(
        budget_s * len(calls), sum(warmup_ms.values()) * (1 + prime_before_each)
    )
    return InterleavedTimings(
        first_ms=first_ms,
        rounds_ms=[_time_round(calls, prime=prime_before_each) for _ in range(runs)],
    )


def time_ms(call: Call) -> float:
    """Return the milliseconds from a call until its result is ready."""
    start = time.perf_counter()
    jax.block_until_ready(call())  # JAX dispatches asynchronously
    return (time.perf_counter() - start) * 1e3


def median_interval(samples: Sequence[float], *, resamples: int = 2000) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the median (percentile method, fixed seed)."""
    resampled = np.random.default_rng(0).choice(samples, (resamples, len(samples)))
    low, high = np.quantile(np.median(resampled, axis=1), [0.025, 0.975])
    return float(low), float(high)


def _time_round(calls: Mapping[Key, Call], *, prime: bool = False) -> dict[Key, float]:
    return {key: _time_primed_ms(call) if prime else time_ms(call) for key, call in calls.items()}


def _time_primed_ms(call: Call) -> float:
    time_ms(call)
    return time_ms(call)


def _runs_within(budget_s: float, round_ms: float) -> int:
    return min(MAX_RUNS, max(MIN_RUNS, int(budget_s * 1e3 / round_ms)))
