"""A model's scores, cost and runtime -> one result to rank."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from flax import nnx

from esrjax import registry
from esrjax.contest import clock, record
from esrjax.contest.clock import forward
from esrjax.contest.record import Companion, Harness, Quality, Result, Timing
from esrjax.contest.rules import Rules
from esrjax.errors import UserError
from esrjax.model import Fusion, Model
from esrjax.network.cost import cost_of
from esrjax.network.reparam import deploy
from esrjax.pictures.score import Scores

SHAPE = (1, 256, 256, 3)  # of the LR picture that methods are timed on


class NotRankable(UserError):
    """What has no single cost and runtime."""


def record_all(
    models: Sequence[Model | Fusion],
    scored: Sequence[Scores],
    data: str,
    folder: Path,
    *,
    baseline: str | None = None,
    harness: Mapping[str, Harness] | None = None,
) -> tuple[Path, ...]:
    """Time the models side by side and write a result for each into `folder`.

    baseline: a method timed in turn with them, of which no weights are needed. harness: name of a
    model -> its runtime over the pictures.
    """
    single = require_recordable(models, folder)
    before = [_before(folder / f"{model.name}.json") for model in single]
    timings, companion = timed(single, baseline)
    paths: list[Path] = []
    for model, scores, old in zip(single, scored, before, strict=True):
        path = folder / f"{model.name}.json"
        runs = {data: (harness or {})[model.name]} if model.name in (harness or {}) else {}
        new = result(model, scores, data, timings[model.name])
        new = replace(new, baseline=companion, harness=runs)
        record.save(_with_other_sets(new, old), path)
        paths.append(path)
    return tuple(paths)


def companion(rules: Rules) -> str | None:
    """The baseline's name, if its method is installed."""
    name = rules.baseline.method
    return name if name in registry.names() else None


def timed(
    models: Sequence[Model], baseline: str | None
) -> tuple[dict[str, Timing], Companion | None]:
    """The runtimes by name, and what is known of the baseline among or beside the models."""
    nets = {model.name: model.net for model in models}
    if baseline is None:
        return _interleaved(nets), None
    method = registry.plain(baseline)
    beside = deploy(method.build())
    timings = _interleaved({baseline: beside, **nets})
    counted = cost_of(method, beside)
    return timings, Companion(
        method=baseline,
        team=method.team,
        params=counted.params,
        macs=counted.macs,
        runtime=timings[baseline],
    )


def _interleaved(nets: Mapping[str, nnx.Module]) -> dict[str, Timing]:
    return clock.interleaved({name: forward(net) for name, net in nets.items()}, SHAPE)


def _before(path: Path) -> Result | None:
    return record.load(path) if path.exists() else None


def _with_other_sets(new: Result, old: Result | None) -> Result:
    """`new`, with what the same weights had on other sets under the same metric."""
    if old is None or (old.weights_sha256, old.spec) != (new.weights_sha256, new.spec):
        return new
    quality, harness = {**old.quality, **new.quality}, {**old.harness, **new.harness}
    return replace(new, quality=quality, harness=harness)


def result(model: Model, scores: Scores, data: str, runtime: Timing) -> Result:
    """Everything that is known of one model."""
    counted = cost_of(model.method, model.net)
    return Result(
        method=model.name,
        team=model.method.team,
        weights_sha256=model.checkpoint.sha256,
        spec=scores.spec,
        quality={data: _quality(scores)},
        params=counted.params,
        macs=counted.macs,
        activations=counted.activations,
        convs=counted.convs,
        runtime=runtime,
        versions={name: metadata.version(name) for name in ("esrjax", "jax", "flax", "numpy")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _quality(scores: Scores) -> Quality:
    mean, each = scores.mean, {name: held.psnr for name, held in scores.images.items()}
    return Quality(psnr=mean.psnr, ssim=mean.ssim, pictures=len(each), each=each)


def require_recordable(models: Sequence[Model | Fusion], folder: Path) -> list[Model]:
    """The models, each of which has one network, if their results can be put into `folder`."""
    record.require_folder(folder)
    return [_single(model) for model in models]


def _single(model: Model | Fusion) -> Model:
    if isinstance(model, Model):
        return model
    raise NotRankable(
        f"{model.name!r} is an ensemble",
        rule="the contest ranks single networks",
        remedy=f"evaluate its members: {', '.join(model.members)}",
    )
