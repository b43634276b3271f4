"""Submissions: measurements of a model, and its entry in the organisers' results.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from esrjax.contest import evaluate, harness
from esrjax.contest.gates import SPLITS, Split
from esrjax.contest.harness import Progress
from esrjax.contest.record import ProtocolTiming, Result
from esrjax.contest.rules import Rules
from esrjax.data.datasets import Pair
from esrjax.errors import UserError
from esrjax.evaluation.metrics import get_spec
from esrjax.evaluation.score import Scores, as_scorable, score
from esrjax.model import Model


class InvalidModelNumber(UserError):
    """Raised when a team's model number is unknown, or belongs to another team."""


class UnknownMemory(UserError):
    """Raised when neither the device nor the compiler reports the memory of a run."""


@dataclass(frozen=True, kw_only=True)
class ResultsEntry:
    """An entry of the organisers' results.json, with their keys in their order.

    Lists have one figure per image. Runtimes are in ms, PSNR in dB, memory in MiB, activations and
    parameters in 10⁶, FLOPs in 10⁹ multiply-adds.
    """

    valid_runtime: tuple[float, ...]
    valid_psnr: tuple[float, ...]
    valid_memory: float
    valid_ave_runtime: float
    valid_ave_psnr: float
    test_runtime: tuple[float, ...]
    test_psnr: tuple[float, ...]
    test_memory: float
    test_ave_runtime: float
    test_ave_psnr: float
    activations: float
    num_conv: int
    flops: float
    num_parameters: float


def model_number(rules: Rules, team: str, requested: int | None) -> int:
    """Return the model number of a submission.

    Args:
        rules: Rules with the numbers that the organisers assigned.
        team: Team of the method.
        requested: Number that the user asks for; None for the assigned one.

    Raises:
        InvalidModelNumber: No number is assigned to the team or requested, or the requested one
            belongs to another team.
    """
    assigned = next((int(key) for key, name in rules.teams.items() if name == team), None)
    if requested is None and assigned is None:
        raise InvalidModelNumber(
            f"No model number for team {team!r} in {rules.name}",
            rule="a submission is identified by its model number",
            remedy="give the number that the organisers assigned to you with --id",
        )
    number = assigned if requested is None else requested
    owner = rules.teams.get(f"{number:02d}", team)
    if number is None or owner != team:
        raise InvalidModelNumber(
            f"--id {number} belongs to {owner}",
            rule=f"results are assigned to teams by number; this method is by {team}",
            remedy="give the number that the organisers assigned to you",
        )
    return number


def score_splits(
    model: Model, pairs: Mapping[Split, Sequence[Pair]], rules: Rules, progress: Progress
) -> dict[Split, Scores]:
    """Return the scores on each split, with the metric of the thresholds.

    Args:
        model: Model to score.
        pairs: Split -> LR/HR pairs.
        rules: Rules with the metric specification.
        progress: Wraps the pairs, for example in a progress bar.
    """
    spec = get_spec(rules.psnr_thresholds.spec)
    return {
        split: score(as_scorable(model, spec), split_pairs, spec, progress)
        for split, split_pairs in pairs.items()
    }


def measure_submission(
    model: Model, pairs: Mapping[Split, Sequence[Pair]], rules: Rules, progress: Progress
) -> Result:
    """Measure everything that a submission reports.

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
        split: harness.time_by_protocol(model, split_pairs, rules, progress)
        for split, split_pairs in pairs.items()
    }
    scores = score_splits(model, pairs, rules, progress)
    timings, baseline = evaluate.time_models([model], evaluate.baseline_name(rules))
    results = [
        evaluate.make_result(model, split_scores, split, timings[model.name])
        for split, split_scores in scores.items()
    ]
    quality = {split: metrics for result in results for split, metrics in result.quality.items()}
    return replace(results[0], quality=quality, protocol_timing=protocol, baseline=baseline)


def results_entry(result: Result) -> ResultsEntry:
    """Return the organisers' figures of a result with quality and protocol timing of both splits.

    Raises:
        UnknownMemory: The memory of a split is unknown.
    """
    valid, test = (result.protocol_timing[split] for split in SPLITS)
    valid_psnr, test_psnr = (_psnr_per_image(result, split) for split in SPLITS)
    return ResultsEntry(
        valid_runtime=tuple(valid.ms_per_image.values()),
        valid_psnr=valid_psnr,
        valid_memory=memory_mib(valid),
        valid_ave_runtime=valid.mean_ms,
        valid_ave_psnr=fmean(valid_psnr),
        test_runtime=tuple(test.ms_per_image.values()),
        test_psnr=test_psnr,
        test_memory=memory_mib(test),
        test_ave_runtime=test.mean_ms,
        test_ave_psnr=fmean(test_psnr),
        activations=result.activations / 1e6,
        num_conv=result.convs,
        flops=result.macs / 1e9,
        num_parameters=result.params / 1e6,
    )


def memory_mib(timing: ProtocolTiming) -> float:
    """Return the memory of a run, MiB: the allocator's peak if reported, else the compiler's plan.

    Raises:
        UnknownMemory: Neither is reported.
    """
    memory = timing.peak_mib if timing.peak_mib is not None else timing.executable_mib
    if memory is None:
        raise UnknownMemory(
            f"{timing.device} reports neither the allocator's peak nor the compiler's memory plan",
            rule="results.json contains the memory of every model",
            remedy="measure on another device",
        )
    return memory


def results_json(key: str, entry: ResultsEntry) -> str:
    """Return the organisers' results.json with one entry; its key is like `23_NAME`."""
    return json.dumps({key: asdict(entry)}, allow_nan=False) + "\n"


def _psnr_per_image(result: Result, split: Split) -> tuple[float, ...]:
    return tuple((result.quality[split].psnr_per_image or {}).values())
