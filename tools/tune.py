"""Tuning of kernels: time every configuration against the reference on this GPU.

tune.py [KERNEL ...]: all kernels by default. For each it times the kernel's tuning configurations
on the operands of real networks (esrjax/testing/kernels.py) in float32, interleaved with the
reference implementation, all of them compiled. The fastest configuration over all operands is
written to kernels/devices.toml under this kind of device, with its speed-up, the geometric mean
over the operands. Entries of other devices are not changed.
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

from esrjax.errors import error_summary
from esrjax.nn import ops
from esrjax.testing.kernels import NETWORK_DIMS, OPERAND_SPECS, operand_arrays

TABLE = Path(__file__).parents[1] / "kernels/devices.toml"
ROUNDS, CALLS = 15, 10


def main() -> None:
    """Tune the kernels named on the command line, or all."""
    if jax.default_backend() != "gpu":
        raise SystemExit(f"kernels are tuned on a GPU; the backend here is {jax.default_backend()}")
    names = sys.argv[1:] or list(OPERAND_SPECS)
    if unknown := sorted(set(names) - OPERAND_SPECS.keys()):
        raise SystemExit(
            f"Unknown kernel {', '.join(unknown)}; there are {', '.join(OPERAND_SPECS)}"
        )
    table = tomllib.loads(TABLE.read_text())
    for name in names:
        entry = tune(name)
        print(name, entry or "supports none of the networks on this device")
        if entry:
            table.setdefault(name, {})[jax.devices()[0].device_kind] = entry
            write(table)  # now, so that an error of a later kernel loses nothing


def tune(name: str) -> dict[str, float]:
    """Return the fastest configuration and its speed-up, empty if no operands are supported."""
    module = import_module(f"esrjax_kernels.{name}")
    reference = jax.jit(getattr(ops, name))
    configs = list(all_configs(module.CONFIG_SPACE))
    calls = [jax.jit(lambda *a, c=config: module.call(*a, config=c)) for config in configs]
    speedups: list[list[float]] = [[] for _ in configs]
    all_operands = [operand_arrays(name, dims, "float32") for dims in NETWORK_DIMS[name]]
    all_operands = [x for x in all_operands if module.unsupported_reason(*x) is None]
    for operands in all_operands:
        working = [i for i, call in enumerate(calls) if _runs(name, configs[i], call, operands)]
        with ops.implementation("reference"):
            reference_s, *kernel_s = median_seconds(
                [reference, *(calls[i] for i in working)], operands
            )
        for i, seconds in zip(working, kernel_s, strict=True):
            speedups[i].append(reference_s / seconds)
    # A configuration that fails for some operands is no choice.
    complete = [i for i, values in enumerate(speedups) if len(values) == len(all_operands) > 0]
    if not complete:
        return {}
    means = {i: statistics.geometric_mean(speedups[i]) for i in complete}
    best = max(means, key=means.__getitem__)
    return {**configs[best], "speedup": round(means[best], 3)}


def _runs(name: str, config: dict[str, int], call: Callable[..., Any], operands: list[Any]) -> bool:
    """Return whether a configuration compiles and runs; print why it does not."""
    try:
        jax.block_until_ready(call(*operands))
    except Exception as error:
        print(f"{name} {config}: {error_summary(error)}", flush=True)
        return False
    return True


def all_configs(config_space: dict[str, tuple[int, ...]]) -> Iterator[dict[str, int]]:
    """Yield every combination of tuning values."""
    for values in itertools.product(*config_space.values()):
        yield dict(zip(config_space, values, strict=True))


def median_seconds(runs: list[Callable[..., Any]], operands: list[Any]) -> list[float]:
    """Return the median seconds per call of each, interleaved after a warm-up call."""
    for run in runs:
        jax.block_until_ready(run(*operands))
    rounds = [[seconds_per_call(run, operands) for run in runs] for _ in range(ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def seconds_per_call(run: Callable[..., Any], operands: list[Any]) -> float:
    """Return the seconds per call, with CALLS calls dispatched at once."""
    start = time.perf_counter()
    jax.block_until_ready([run(*operands) for _ in range(CALLS)])
    return (time.perf_counter() - start) / CALLS


def write(entries: dict[str, dict[str, dict[str, float]]]) -> None:
    """Replace devices.toml atomically; its comments are kept."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("#")]
    for name, devices in sorted(entries.items()):
        for device, entry in sorted(devices.items()):
            lines += ["", f'[{name}."{device}"]', *(f"{key} = {v}" for key, v in entry.items())]
    tmp_path = TABLE.with_suffix(".new")
    tmp_path.write_text("\n".join(lines) + "\n")
    os.replace(tmp_path, TABLE)


if __name__ == "__main__":
    main()
