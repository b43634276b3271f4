"""A submission in words: what was measured, how it was trained, what it was made with."""

from collections.abc import Sequence
from statistics import fmean

from esrjax.contest.gates import SPLITS, Gate
from esrjax.contest.record import Result, Timing
from esrjax.contest.submission import Entry, memory_mib

_COUNTED = "as the organisers count, at 256x256"


def factsheet(
    key: str,
    result: Result,
    made: Entry,
    gates: Sequence[Gate],
    training: Sequence[str],
    weights: Sequence[str],
) -> str:
    """Markdown. key: `23_NAME`. training, weights: what is said of them, a line each."""
    rows = [*_counted(made), *_memory(result), *_runtimes(result), *map(_quality, gates)]
    table = "\n".join(f"| {what} | {figure} | {how} |" for what, figure, how in rows)
    parts = [
        f"# {key}, {result.team}",
        f"| | | |\n|---|---:|---|\n{table}",
        "## Training\n\n" + _list(training),
        "## Weights\n\n" + _list(weights),
        "## Measured with\n\n" + _list(_conditions(result)),
    ]
    return "\n\n".join(parts) + "\n"


def gate_words(gate: Gate) -> str:
    """`floor 26.90: +0 mdB as rounded, -3.6 mdB unrounded; passes by rounding alone`."""
    floor = f"{gate.floor:.{gate.decimals}f}"
    said = (
        f"floor {floor}: {gate.rounded_mdb:+.0f} mdB as rounded, "
        f"{gate.unrounded_mdb:+.1f} mdB unrounded; {gate.verdict}"
    )
    if gate.verdict == "not judged":
        return f"{said}: {gate.pictures} pictures, the floor speaks of {gate.asked}"
    return f"{said}: {gate.waived}" if gate.verdict == "waived" else said


def _counted(made: Entry) -> list[tuple[str, str, str]]:
    return [
        ("parameters", f"{made.num_parameters:.6f} M", _COUNTED),
        ("FLOPs", f"{made.flops:.4f} G", f"multiply-adds, {_COUNTED}"),
        ("activations", f"{made.activations:.4f} M", f"outputs of convolutions, {_COUNTED}"),
        ("convolutions", str(made.num_conv), _COUNTED),
    ]


def _memory(result: Result) -> list[tuple[str, str, str]]:
    how = {split: result.harness[split].peak_mib is None for split in SPLITS}
    return [
        (
            f"memory, {split}",
            f"{memory_mib(result.harness[split]):.2f} MiB",
            "as the compiler plans the largest picture" if planned else "the allocator's peak",
        )
        for split, planned in how.items()
    ]


def _runtimes(result: Result) -> list[tuple[str, str, str]]:
    means = {split: result.harness[split].mean_ms for split in SPLITS}
    once = "each picture once, the first in the mean"
    beside = result.baseline
    rows = [
        *((f"runtime, {split}", f"{mean:.3f} ms", once) for split, mean in means.items()),
        ("runtime, average", f"{fmean(means.values()):.3f} ms", "mean of the two"),
        ("runtime, one size", *_median(result.runtime)),
    ]
    if beside:
        rows += [(f"the same of {beside.method}", *_median(beside.runtime))]
    return rows


def _median(time: Timing) -> tuple[str, str]:
    side = "x".join(map(str, time.shape[1:3]))
    how = f"median of {time.runs} runs at {side}, 95 % within {time.low_ms:.3f} to"
    return f"{time.median_ms:.3f} ms", f"{how} {time.high_ms:.3f} ms, in turn with the other"


def _quality(gate: Gate) -> tuple[str, str, str]:
    return f"PSNR, {gate.split}", f"{gate.psnr:.4f} dB", gate_words(gate)


def _conditions(result: Result) -> list[str]:
    time = result.runtime
    return [
        f"device: {time.device}" + (f", driver {time.driver}" if time.driver else ""),
        f"one size: {time.conditions}, operations' bodies: {time.body}",
        f"metric: `{result.spec}`",
        ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        result.created,
    ]


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
