"""Times every kernel beside its reference on this GPU, and writes what it finds for its kind.

tune.py [KERNEL ...]: all by default. For each it tries the blocks that the kernel names on the
operands of real networks (esrjax/testing/operands.py), float32, in turn with the reference body,
each compiled. The block with the least time over all of them is written to kernels/devices.toml
with its speed-up, the geometric mean over the operands. Other devices in the file stay as they are.
"""

import itertools
import os
import statistics
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jax

from esrjax.network import ops
from esrjax.testing.operands import OPERANDS, REAL, arrays

TABLE = Path(__file__).parents[1] / "kernels/devices.toml"
ROUNDS, CALLS = 15, 10


def main() -> None:
    """Tunes the kernels that are named on the command line, or all."""
    if jax.default_backend() != "gpu":
        raise SystemExit(f"kernels are measured on a GPU; this is {jax.default_backend()}")
    names = sys.argv[1:] or list(OPERANDS)
    if unknown := sorted(set(names) - OPERANDS.keys()):
        raise SystemExit(f"no kernel {', '.join(unknown)}; there are {', '.join(OPERANDS)}")
    table = tomllib.loads(TABLE.read_text())
    for name in names:
        found = tuned(name)
        print(name, found or "serves no network here")
        if found:
            table.setdefault(name, {})[jax.devices()[0].device_kind] = found
    write(table)


def tuned(name: str) -> dict[str, float]:
    """The fastest block and its speed-up; nothing where the kernel serves no operands."""
    module = import_module(f"esrjax_kernels.{name}")
    reference = jax.jit(getattr(ops, name))
    blocks = list(choices(module.BLOCKS))
    calls = [jax.jit(lambda *a, b=block: module.call(*a, block=b)) for block in blocks]
    gains: list[list[float]] = [[] for _ in blocks]
    every = (arrays(name, sizes, "float32") for sizes in REAL[name])
    for operands in (each for each in every if module.why_not(*each) is None):
        with ops.body("reference"):
            plain, *fast = timed([reference, *calls], operands)
        for gain, seconds in zip(gains, fast, strict=True):
            gain.append(plain / seconds)
    if not any(gains):
        return {}
    means = [statistics.geometric_mean(gain) for gain in gains]
    best = max(range(len(blocks)), key=means.__getitem__)
    return {**blocks[best], "speedup": round(means[best], 3)}


def choices(blocks: dict[str, tuple[int, ...]]) -> Iterator[dict[str, int]]:
    """Every block that can be chosen."""
    for sizes in itertools.product(*blocks.values()):
        yield dict(zip(blocks, sizes, strict=True))


def timed(runs: list[Callable[..., Any]], operands: list[Any]) -> list[float]:
    """Median seconds of a call of each, after a warm-up, round by round in turn."""
    for run in runs:
        jax.block_until_ready(run(*operands))
    rounds = [[seconds(run, operands) for run in runs] for _ in range(ROUNDS)]
    return [statistics.median(each) for each in zip(*rounds, strict=True)]


def seconds(run: Callable[..., Any], operands: list[Any]) -> float:
    """Of one call, many being in flight together."""
    start = time.perf_counter()
    jax.block_until_ready([run(*operands) for _ in range(CALLS)])
    return (time.perf_counter() - start) / CALLS


def write(table: dict[str, dict[str, dict[str, float]]]) -> None:
    """The table in place of the old one, which stays until the new one is whole."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("#")]
    for name, kinds in sorted(table.items()):
        for kind, found in sorted(kinds.items()):
            lines += ["", f'[{name}."{kind}"]', *(f"{key} = {v}" for key, v in found.items())]
    beside = TABLE.with_suffix(".new")
    beside.write_text("\n".join(lines) + "\n")
    os.replace(beside, TABLE)


if __name__ == "__main__":
    main()
