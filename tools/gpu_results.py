"""Results of a step of tools/gpu_run.py: records, written after each of them, and timing."""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from esrjax.errors import error_summary
from esrjax.io import write_bytes

ROUNDS = 7
REHEARSAL = bool(os.environ.get("GPU_RUN_REHEARSE"))
Record = dict[str, Any]


class Results:
    """The records of a step, in a file."""

    def __init__(self, file: Path):
        self.file, self.records = file, []

    def add(self, **record: Any) -> None:
        """Append a record, and write all of them."""
        self.records.append(record)
        write_bytes(self.file, json.dumps({"records": self.records}, indent=1).encode())

    def attempt(self, measure: Callable[[], Record], **record: Any) -> None:
        """Append `record` with what `measure()` returns, or with the error that it raised."""
        start = time.monotonic()
        try:
            record |= measure()
        except Exception as error:
            record["error"] = error_summary(error)
        self.add(**record, seconds=round(time.monotonic() - start, 2))


def run(step: Callable[[Results], None]) -> None:
    """Run a step with the results file that the driver names."""
    step(Results(Path(os.environ["GPU_RUN_FILE"])))


def choose(full: Any, tiny: Any) -> Any:
    """Return the size for a GPU, or for a rehearsal."""
    return tiny if REHEARSAL else full


def median_ms(call: Callable[[], Any], calls: int = 1) -> Record:
    """Return the median of the milliseconds per call, and the fastest and the slowest round.

    Args:
        call: Runs `calls` dependent calls, and returns when the device has finished them.
        calls: Number of calls that it runs.
    """
    call()  # compiles
    call()
    rounds = [_seconds(call) * 1e3 / calls for _ in range(choose(ROUNDS, 2))]
    names = ("ms", "fastest_ms", "slowest_ms")
    values = (statistics.median(rounds), min(rounds), max(rounds))
    return {name: round(value, 5) for name, value in zip(names, values, strict=True)}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
