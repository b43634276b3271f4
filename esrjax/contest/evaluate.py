"""A model's scores, cost and runtime -> one result to rank."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from esrjax.contest import clock, record
from esrjax.contest.bench import forward
from esrjax.contest.record import Quality, Result, Timing
from esrjax.errors import UserError
from esrjax.model import Fusion, Model
from esrjax.network.cost import cost
from esrjax.pictures.score import Scores

SHAPE = (1, 256, 256, 3)  # of the LR picture that methods are timed on


class NotRankable(UserError):
    """What has no single cost and runtime."""


def record_all(
    models: Sequence[Model | Fusion], scored: Sequence[Scores], data: str, folder: Path
) -> tuple[Path, ...]:
    """Time the models side by side and write a result for each into `folder`."""
    single = require_recordable(models, folder)
    before = [_before(folder / f"{model.name}.json") for model in single]
    timings = clock.interleaved({m.name: forward(m.net) for m in single}, SHAPE)
    paths: list[Path] = []
    for model, scores, old in zip(single, scored, before, strict=True):
        path = folder / f"{model.name}.json"
        new = result(model, scores, data, timings[model.name])
        record.save(_with_other_sets(new, old), path)
        paths.append(path)
    return tuple(paths)


def _before(path: Path) -> Result | None:
    return record.load(path) if path.exists() else None


def _with_other_sets(new: Result, old: Result | None) -> Result:
    """`new`, with the quality on other sets that the same weights had under the same metric."""
    if old is None or (old.weights_sha256, old.spec) != (new.weights_sha256, new.spec):
        return new
    return replace(new, quality={**old.quality, **new.quality})


def result(model: Model, scores: Scores, data: str, runtime: Timing) -> Result:
    """Everything that is known of one model."""
    counted = cost(model.net, uncounted=model.method.uncounted)
    mean = scores.mean
    return Result(
        method=model.name,
        team=model.method.team,
        weights_sha256=model.checkpoint.sha256,
        spec=scores.spec,
        quality={data: Quality(psnr=mean.psnr, ssim=mean.ssim, pictures=len(scores.images))},
        params=counted.params,
        macs=counted.macs,
        activations=counted.activations,
        convs=counted.convs,
        runtime=runtime,
        versions={name: metadata.version(name) for name in ("esrjax", "jax", "flax", "numpy")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


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
