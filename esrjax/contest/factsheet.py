"""Factsheet of a submission in Markdown: measurements, training, weights and environment."""

from collections.abc import Sequence
from statistics import fmean

from esrjax.contest.gates import SPLITS, ThresholdCheck
from esrjax.contest.record import Result, Timing
from esrjax.contest.submission import ResultsEntry, memory_mib

_AS_COUNTED = "as the organisers count, at 256x256"


def factsheet_markdown(
    key: str,
    result: Result,
    entry: ResultsEntry,
    checks: Sequence[ThresholdCheck],
    training: Sequence[str],
    weights: Sequence[str],
) -> str:
    """Return the factsheet of a submission.

    Args:
        key: Key of the submission, like `23_NAME`.
        result: Everything measured of the model.
        entry: Its entry in results.json.
        checks: Its PSNR against the thresholds.
        training: Lines about the training.
        weights: Lines about the weights.
    """
    rows = [*_cost(entry), *_memory(result), *_runtimes(result), *map(_quality, checks)]
    table = "\n".join(f"| {name} | {figure} | {method} |" for name, figure, method in rows)
    sections = [
        f"# {key}, {result.team}",
        f"| | | |\n|---|---:|---|\n{table}",
        "## Training\n\n" + _bullets(training),
        "## Weights\n\n" + _bullets(weights),
        "## Environment\n\n" + _bullets(_environment(result)),
    ]
    return "\n\n".join(sections) + "\n"


def threshold_text(check: ThresholdCheck) -> str:
    """Return a check in words.

    For example `threshold 26.90 dB: +0 mdB rounded, -3.6 mdB unrounded; passes only after
    rounding`.
    """
    threshold = f"{check.threshold:.{check.decimals}f}"
    text = (
        f"threshold {threshold} dB: {check.rounded_margin_mdb:+.0f} mdB rounded, "
        f"{check.unrounded_margin_mdb:+.1f} mdB unrounded; {check.outcome}"
    )
    if check.outcome == "not checked":
        return f"{text}: {check.num_images} images instead of {check.required_images}"
    return f"{text}: {check.waiver}" if check.outcome == "waived" else text


def _cost(entry: ResultsEntry) -> list[tuple[str, str, str]]:
    return [
        ("parameters", f"{entry.num_parameters:.6f} M", _AS_COUNTED),
        ("FLOPs", f"{entry.flops:.4f} G", f"multiply-adds, {_AS_COUNTED}"),
        ("activations", f"{entry.activations:.4f} M", f"outputs of convolutions, {_AS_COUNTED}"),
        ("convolutions", str(entry.num_conv), _AS_COUNTED),
    ]


def _memory(result: Result) -> list[tuple[str, str, str]]:
    is_planned = {split: result.protocol_timing[split].peak_mib is None for split in SPLITS}
    return [
        (
            f"memory, {split}",
            f"{memory_mib(result.protocol_timing[split]):.2f} MiB",
            "the compiler's plan for the largest image" if planned else "the allocator's peak",
        )
        for split, planned in is_planned.items()
    ]


def _runtimes(result: Result) -> list[tuple[str, str, str]]:
    means = {split: result.protocol_timing[split].mean_ms for split in SPLITS}
    protocol = "each image once, mean including the first"
    baseline = result.baseline
    rows = [
        *((f"runtime, {split}", f"{mean:.3f} ms", protocol) for split, mean in means.items()),
        ("runtime, average", f"{fmean(means.values()):.3f} ms", "mean of the two"),
        ("runtime, one size", *_median(result.runtime)),
    ]
    if baseline:
        rows += [(f"runtime of {baseline.method}, one size", *_median(baseline.runtime))]
    return rows


def _median(timing: Timing) -> tuple[str, str]:
    size = "x".join(map(str, timing.shape[1:3]))
    method = f"median of {timing.num_runs} runs at {size}, 95 % interval {timing.low_ms:.3f} to"
    return f"{timing.median_ms:.3f} ms", f"{method} {timing.high_ms:.3f} ms, interleaved"


def _quality(check: ThresholdCheck) -> tuple[str, str, str]:
    return f"PSNR, {check.split}", f"{check.psnr:.4f} dB", threshold_text(check)


def _environment(result: Result) -> list[str]:
    timing = result.runtime
    return [
        f"device: {timing.device}" + (f", driver {timing.driver}" if timing.driver else ""),
        f"one size: {timing.conditions}, implementation of ops: {timing.implementation}",
        f"metric: `{result.spec}`",
        ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        result.created,
    ]


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
