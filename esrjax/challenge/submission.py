"""Submission of a model: PSNR thresholds, measurements, entry in results.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal

from esrjax.challenge import evaluate
from esrjax.challenge.record import ProtocolTiming, Result, ResultsEntry
from esrjax.challenge.rules import Rules
from esrjax.data.datasets import Images, Progress, has_hr
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


# --- measurements ---


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
    model: Model,
    images: Mapping[Split, Images],
    rules: Rules,
    progress: Progress,
    num_runs: int = 1,
) -> tuple[Result, dict[Split, Scores]]:
    """Measure everything that a submission reports, and return it with the scores.

    The runtime over images is measured first, before any other work of the process, as the
    organisers' program does; then come PSNR, and runtime at one image size interleaved with the
    baseline.

    Args:
        model: Model to measure.
        images: Split -> LR/HR pairs, or LR images, which are timed and not scored.
        rules: Rules of the challenge.
        progress: Wraps the images, for example in a progress bar.
        num_runs: Number of runs that the runtimes over images are means of.
    """
    protocol = {
        split: evaluate.time_by_protocol(model, split_images, rules, progress, num_runs)
        for split, split_images in images.items()
    }
    scores = score_splits(model, images, rules, progress)
    name = model.name
    timings, baseline = evaluate.time_models({name: model}, evaluate.baseline_name(rules))
    result = evaluate.make_result(model, {**scores}, timings[name])
    return replace(result, protocol_timing=protocol, baseline=baseline), scores


def results_entry(result: Result) -> ResultsEntry:
    """Return the organisers' figures of a result with protocol timing of both splits.

    The PSNR of a split that was not scored is None.

    Raises:
        SubmissionError: The memory of a split is unknown.
    """
    figures: dict[str, Any] = {}
    for split in SPLITS:
        timing, quality = result.protocol_timing[split], result.quality.get(split)
        psnr = tuple((quality.psnr_per_image or {}).values()) if quality else None
        figures |= {
            f"{split}_runtime": tuple(timing.ms_per_image.values()),
            f"{split}_psnr": psnr,
            f"{split}_memory": memory_mib(timing),
            f"{split}_ave_runtime": timing.mean_ms,
            f"{split}_ave_psnr": fmean(psnr) if psnr else None,
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
