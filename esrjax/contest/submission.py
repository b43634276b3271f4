"""What a contest is handed of a method: everything measured, and its entry in results.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean

from esrjax.contest import evaluate, harness
from esrjax.contest.gates import SPLITS, Split
from esrjax.contest.harness import Progress
from esrjax.contest.record import Harness, Result
from esrjax.contest.rules import Rules
from esrjax.errors import UserError
from esrjax.model import Model
from esrjax.pictures.score import Scores, score, seen
from esrjax.pictures.sets import Pair
from esrjax.pictures.specs import named


class WrongNumber(UserError):
    """A number that a contest gives to another team, or none at all."""


class NoMemory(UserError):
    """A device that does not tell how much memory was used."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the organisers' program writes of a model into results.json, in its order.

    Lists: one figure a picture. Runtimes in ms, PSNR in dB, memory in MiB, activations and
    parameters in 10⁶, flops in 10⁹ multiply-adds.
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


def number(rules: Rules, team: str, asked: int | None) -> int:
    """The number of the model: the one asked for, else the one that the contest gave the team."""
    known = next((int(key) for key, name in rules.teams.items() if name == team), None)
    if asked is None and known is None:
        raise WrongNumber(
            f"{rules.name} knows no team {team!r}",
            rule="a submission is called by the number of its model",
            remedy="give the number that the organisers gave you with --id",
        )
    chosen = known if asked is None else asked
    owner = rules.teams.get(f"{chosen:02d}", team)
    if chosen is None or owner != team:
        raise WrongNumber(
            f"--id {chosen} belongs to {owner}",
            rule=f"results are assigned to teams by number; this method is by {team}",
            remedy="give the number that the organisers gave you",
        )
    return chosen


def scores(
    model: Model, sets: Mapping[Split, Sequence[Pair]], rules: Rules, progress: Progress
) -> dict[Split, Scores]:
    """Both sets under the metric that the floors speak of."""
    spec = named(rules.floors.spec)
    return {split: score(seen(model, spec), pairs, spec, progress) for split, pairs in sets.items()}


def measure(
    model: Model, sets: Mapping[Split, Sequence[Pair]], rules: Rules, progress: Progress
) -> Result:
    """As the organisers' program: each picture timed once, before all else; then quality, cost.

    The runtime at one size is taken in turn with the baseline's.
    """
    runs = {split: harness.run(model, pairs, rules, progress) for split, pairs in sets.items()}
    found = scores(model, sets, rules, progress)
    timings, beside = evaluate.timed([model], evaluate.companion(rules))
    each = [
        evaluate.result(model, held, split, timings[model.name]) for split, held in found.items()
    ]
    quality = {split: held for one in each for split, held in one.quality.items()}
    return replace(each[0], quality=quality, harness=runs, baseline=beside)


def entry(result: Result) -> Entry:
    """The organisers' figures of a result that has both sets, with their harness."""
    valid, test = (result.harness[split] for split in SPLITS)
    valid_psnr, test_psnr = (_decibels(result, split) for split in SPLITS)
    return Entry(
        valid_runtime=tuple(valid.each.values()),
        valid_psnr=valid_psnr,
        valid_memory=memory_mib(valid),
        valid_ave_runtime=valid.mean_ms,
        valid_ave_psnr=fmean(valid_psnr),
        test_runtime=tuple(test.each.values()),
        test_psnr=test_psnr,
        test_memory=memory_mib(test),
        test_ave_runtime=test.mean_ms,
        test_ave_psnr=fmean(test_psnr),
        activations=result.activations / 1e6,
        num_conv=result.convs,
        flops=result.macs / 1e9,
        num_parameters=result.params / 1e6,
    )


def memory_mib(run: Harness) -> float:
    """The allocator's peak where the device tells it, else what the compiler plans, MiB."""
    told = run.peak_mib if run.peak_mib is not None else run.program_mib
    if told is None:
        raise NoMemory(
            f"{run.device} tells neither its allocator's peak nor the compiler's plan",
            rule="results.json holds the memory of every model",
            remedy="measure on another device",
        )
    return told


def results_json(key: str, made: Entry) -> str:
    """The organisers' results.json with this one entry, `key` being `23_NAME`."""
    return json.dumps({key: asdict(made)}, allow_nan=False) + "\n"


def _decibels(result: Result, split: Split) -> tuple[float, ...]:
    return tuple((result.quality[split].each or {}).values())
