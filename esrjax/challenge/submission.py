"""Submission of a model: PSNR thresholds, measurements, entry in results.json, factsheet."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal

from esrjax.bench.record import Timing
from esrjax.challenge import evaluate
from esrjax.challenge.record import ProtocolTiming, Result, ResultsEntry
from esrjax.challenge.rules import Rules
from esrjax.data.datasets import LrImage, Pair, Progress, has_hr
from esrjax.errors import InvalidArgument, SubmissionError
from esrjax.evaluation.metrics import get_spec
from esrjax.evaluation.score import Scores, as_scorable, score
from esrjax.inference import Model

Split = Literal["valid", "test"]
SPLITS: tuple[Split, ...] = ("valid", "test")
ThresholdOutcome = Literal["passes", "passes only after rounding", "waived", "fails", "not checked"]


@dataclass(frozen=True, kw_only=True)
class ThresholdCheck:
    """A mean PSNR and the threshold that it must reach.

    Attributes:
        split: Split of the challenge over which the mean was taken.
        psnr: Mean PSNR, dB.
        num_images: Number of images behind the mean.
        required_images: Number of images of the challenge's own split.
        threshold: PSNR to reach, dB.
        decimals: Decimals to which the challenge rounds the PSNR before it compares.
        waiver: Why the team is ranked even below the threshold, or None.
    """

    split: Split
    psnr: float
    num_images: int
    required_images: int
    threshold: float
    decimals: int
    waiver: str | None = None

    @property
    def rounded_margin_mdb(self) -> float:
        """Rounded PSNR minus threshold, in 0.001 dB; negative if the check fails."""
        return 1000 * round(round(self.psnr, self.decimals) - self.threshold, self.decimals)

    @property
    def unrounded_margin_mdb(self) -> float:
        """PSNR minus threshold, in 0.001 dB."""
        return 1000 * (self.psnr - self.threshold)

    @property
    def outcome(self) -> ThresholdOutcome:
        """Outcome under the rules; "not checked" if the images are not the whole split."""
        if self.num_images != self.required_images:
            return "not checked"
        if self.rounded_margin_mdb < 0:
            return "waived" if self.waiver else "fails"
        return "passes" if self.unrounded_margin_mdb >= 0 else "passes only after rounding"


def threshold_checks(
    means: Mapping[Split, tuple[float, int]], rules: Rules, team: str
) -> tuple[ThresholdCheck, ...]:
    """Return the threshold check of each split.

    Args:
        means: Split -> mean PSNR in dB, and the number of images behind it.
        rules: Rules with the thresholds.
        team: Team of the entry, which may have a waiver.
    """
    thresholds = rules.psnr_thresholds
    return tuple(
        ThresholdCheck(
            split=split,
            psnr=psnr,
            num_images=num_images,
            required_images=thresholds.num_images,
            threshold=thresholds.by_split[split],
            decimals=thresholds.decimals,
            waiver=rules.waiver_reason(team),
        )
        for split, (psnr, num_images) in means.items()
    )


# --- measurements ---


Images = Sequence[Pair] | Sequence[LrImage]  # of a split; without HR they cannot be scored


def model_number(rules: Rules, team: str, requested: int | None) -> int:
    """Return the model number of a submission.

    Args:
        rules: Rules with the numbers that the organisers assigned.
        team: Team of the method.
        requested: Number that the user asks for; None for the assigned one.

    Raises:
        InvalidArgument: No number is assigned to the team or requested, or the requested one
            belongs to another team.
    """
    assigned = next((int(key) for key, name in rules.teams.items() if name == team), None)
    number = assigned if requested is None else requested
    owner = None if number is None else rules.teams.get(f"{number:02d}", team)
    if number is not None and owner == team:
        return number
    raise InvalidArgument(
        f"--id {number} belongs to {owner}"
        if owner
        else f"No model number for team {team!r} in {rules.name}",
        rule=f"a submission is identified by its model number; this method is by {team}",
        remedy="give the number that the organisers assigned to you with --id",
    )


def score_splits(
    model: Model, images: Mapping[Split, Images], rules: Rules, progress: Progress
) -> dict[Split, Scores]:
    """Return the scores on each split that has HR images, with the metric of the thresholds.

    Args:
        model: Model to score.
        images: Split -> LR/HR pairs, or LR images.
        rules: Rules with the metric specification.
        progress: Wraps the pairs, for example in a progress bar.
    """
    spec = get_spec(rules.psnr_thresholds.spec)
    return {
        split: score(as_scorable(model, spec), split_pairs, spec, progress)
        for split, split_pairs in images.items()
        if has_hr(split_pairs)
    }


def measure_submission(
    model: Model, pairs: Mapping[Split, Sequence[Pair]], rules: Rules, progress: Progress
) -> tuple[Result, dict[Split, Scores]]:
    """Measure everything that a submission reports, and return it with the scores.

    The runtime over images is measured first, before any other work of the process, as the
    organisers' program does; then come PSNR, and runtime at one image size interleaved with the
    baseline.

    Args:
        model: Model to measure.
        pairs: Split -> LR/HR pairs.
        rules: Rules of the challenge.
        progress: Wraps the pairs, for example in a progress bar.
    """
    protocol = {
        split: evaluate.time_by_protocol(model, split_pairs, rules, progress)
        for split, split_pairs in pairs.items()
    }
    scores = score_splits(model, pairs, rules, progress)
    name = model.name
    timings, baseline = evaluate.time_models({name: model}, evaluate.baseline_name(rules))
    result = evaluate.make_result(model, {**scores}, timings[name])
    return replace(result, protocol_timing=protocol, baseline=baseline), scores


def results_entry(result: Result) -> ResultsEntry:
    """Return the organisers' figures of a result with quality and protocol timing of both splits.

    Raises:
        SubmissionError: The memory of a split is unknown.
    """
    figures: dict[str, Any] = {}
    for split in SPLITS:
        timing = result.protocol_timing[split]
        psnr = tuple((result.quality[split].psnr_per_image or {}).values())
        figures |= {
            f"{split}_runtime": tuple(timing.ms_per_image.values()),
            f"{split}_psnr": psnr,
            f"{split}_memory": memory_mib(timing),
            f"{split}_ave_runtime": timing.mean_ms,
            f"{split}_ave_psnr": fmean(psnr),
        }
    return ResultsEntry(
        **figures,
        activations=result.activations / 1e6,
        num_conv=result.convs,
        flops=result.macs / 1e9,
        num_parameters=result.params / 1e6,
    )


def memory_mib(timing: ProtocolTiming) -> float:
    """Return the memory of a run, MiB: the allocator's peak if reported, else the compiler's plan.

    Raises:
        SubmissionError: Neither is reported.
    """
    memory = timing.peak_mib if timing.peak_mib is not None else timing.executable_mib
    if memory is None:
        raise SubmissionError(
            f"{timing.device} reports neither the allocator's peak nor the compiler's memory plan",
            rule="results.json contains the memory of every model",
            remedy="measure on another device",
        )
    return memory


def results_json(key: str, entry: ResultsEntry) -> str:
    """Return the organisers' results.json with one entry; its key is like `23_NAME`."""
    return json.dumps({key: asdict(entry)}, allow_nan=False) + "\n"


# --- factsheet ---


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
    table = "\n".join(f"| {' | '.join(row)} |" for row in _rows(result, entry, checks))
    sections = {"Training": training, "Weights": weights, "Environment": _environment(result)}
    parts = [f"# {key}, {result.team}", f"| | | |\n|---|---:|---|\n{table}"]
    for title, lines in sections.items():
        parts.append(f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines))
    return "\n\n".join(parts) + "\n"


def threshold_text(check: ThresholdCheck) -> str:
    """Return a check in words.

    For example `threshold 26.90 dB: +0 mdB rounded, -3.6 mdB unrounded; passes only after
    rounding`.
    """
    rounded, unrounded = check.rounded_margin_mdb, check.unrounded_margin_mdb
    margins = f"{rounded:+.0f} mdB rounded, {unrounded:+.1f} mdB unrounded"
    text = f"threshold {check.threshold:.{check.decimals}f} dB: {margins}; {check.outcome}"
    if check.outcome == "not checked":
        return f"{text}: {check.num_images} images instead of {check.required_images}"
    return f"{text}: {check.waiver}" if check.outcome == "waived" else text


def _rows(
    result: Result, entry: ResultsEntry, checks: Sequence[ThresholdCheck]
) -> list[tuple[str, str, str]]:
    """Figures of the factsheet: name, value with unit, how it was counted or measured."""
    timings = {split: result.protocol_timing[split] for split in SPLITS}
    one_size = {"runtime": result.runtime}
    if result.baseline:
        one_size[f"runtime of {result.baseline.method}"] = result.baseline.runtime
    counted = "as the organisers count, at 256x256"
    plan, peak = "the compiler's plan for the largest image", "the allocator's peak"
    protocol = "each image once, mean including the first"
    average = fmean(timing.mean_ms for timing in timings.values())
    return [
        ("parameters", f"{entry.num_parameters:.6f} M", counted),
        ("FLOPs", f"{entry.flops:.4f} G", f"multiply-adds, {counted}"),
        ("activations", f"{entry.activations:.4f} M", f"outputs of convolutions, {counted}"),
        ("convolutions", str(entry.num_conv), counted),
        *(
            (f"memory, {split}", f"{memory_mib(t):.2f} MiB", plan if t.peak_mib is None else peak)
            for split, t in timings.items()
        ),
        *((f"runtime, {split}", f"{t.mean_ms:.3f} ms", protocol) for split, t in timings.items()),
        ("runtime, average", f"{average:.3f} ms", "mean of the two"),
        *(_median_row(f"{name}, one size", timing) for name, timing in one_size.items()),
        *((f"PSNR, {c.split}", f"{c.psnr:.4f} dB", threshold_text(c)) for c in checks),
    ]


def _median_row(name: str, timing: Timing) -> tuple[str, str, str]:
    size = "x".join(map(str, timing.shape[1:3]))
    method = f"median of {timing.num_runs} runs at {size}, 95 % interval {timing.low_ms:.3f} to"
    return name, f"{timing.median_ms:.3f} ms", f"{method} {timing.high_ms:.3f} ms, interleaved"


def _environment(result: Result) -> list[str]:
    timing = result.runtime
    return [
        f"device: {timing.device}" + (f", driver {timing.driver}" if timing.driver else ""),
        f"one size: {timing.conditions}, implementation of ops: {timing.implementation}",
        f"metric: `{result.spec}`",
        ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        result.created,
    ]
