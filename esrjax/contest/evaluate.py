"""Results of models: scores, cost and runtime, measured and written to result files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from flax import nnx

from esrjax import registry
from esrjax.contest import clock, record
from esrjax.contest.clock import forward_fn
from esrjax.contest.record import BaselineTiming, DatasetMetrics, ProtocolTiming, Result, Timing
from esrjax.contest.rules import Rules
from esrjax.errors import UserError
from esrjax.evaluation.score import Scores
from esrjax.model import EnsembleModel, Model
from esrjax.network.cost import cost_of
from esrjax.network.reparam import deploy

TIMING_SHAPE = (1, 256, 256, 3)  # shape of the LR image that runtimes are measured on


class NotRankable(UserError):
    """Raised when a result is requested of an ensemble: it has no single cost and runtime."""


def write_results(
    models: Sequence[Model | EnsembleModel],
    scored: Sequence[Scores],
    data: str,
    folder: Path,
    *,
    baseline: str | None = None,
    protocol_timings: Mapping[str, ProtocolTiming] | None = None,
) -> tuple[Path, ...]:
    """Time models, interleaved, and write one result file for each.

    A file that has the same weights and metric keeps the results of its other datasets.

    Args:
        models: Models to time; not ensembles.
        scored: Scores of each model on the dataset.
        data: Name of the dataset.
        folder: Folder of the result files, `METHOD.json`; created if needed.
        baseline: A method to time interleaved with the models, untrained; None for no baseline.
        protocol_timings: Model name -> runtime over the images of the dataset.

    Returns:
        The paths of the result files.

    Raises:
        NotRankable: One of the models is an ensemble.
        UnwritableResults: The folder cannot be written into.
        InvalidResult: A result file of a model exists, but is malformed.
    """
    single = check_rankable(models, folder)
    previous = [_load_existing(folder / f"{model.name}.json") for model in single]
    timings, baseline_timing = time_models(single, baseline)
    paths: list[Path] = []
    for model, scores, old in zip(single, scored, previous, strict=True):
        path = folder / f"{model.name}.json"
        protocol = (
            {data: (protocol_timings or {})[model.name]}
            if model.name in (protocol_timings or {})
            else {}
        )
        new = make_result(model, scores, data, timings[model.name])
        new = replace(new, baseline=baseline_timing, protocol_timing=protocol)
        record.save_result(_with_other_datasets(new, old), path)
        paths.append(path)
    return tuple(paths)


def baseline_name(rules: Rules) -> str | None:
    """Return the name of the baseline's method, or None if it is not installed."""
    name = rules.baseline.method
    return name if name in registry.names() else None


def time_models(
    models: Sequence[Model], baseline: str | None
) -> tuple[dict[str, Timing], BaselineTiming | None]:
    """Time models at 1x256x256x3, interleaved with each other and with the baseline.

    Args:
        models: Models to time.
        baseline: Name of the baseline's method, which may also be one of the models.

    Returns:
        The runtimes by name, and the runtime and cost of the baseline if there is one.
    """
    nets = {model.name: model.net for model in models}
    if baseline is None:
        return _time_nets(nets), None
    method = registry.get_method(baseline)
    baseline_net = deploy(method.build())
    timings = _time_nets({baseline: baseline_net, **nets})
    cost = cost_of(method, baseline_net)
    return timings, BaselineTiming(
        method=baseline,
        team=method.team,
        params=cost.params,
        macs=cost.macs,
        runtime=timings[baseline],
    )


def _time_nets(nets: Mapping[str, nnx.Module]) -> dict[str, Timing]:
    return clock.time_networks({name: forward_fn(net) for name, net in nets.items()}, TIMING_SHAPE)


def _load_existing(path: Path) -> Result | None:
    return record.load_result(path) if path.exists() else None


def _with_other_datasets(new: Result, old: Result | None) -> Result:
    """`new`, plus the other datasets of `old` if that has the same weights and metric."""
    if old is None or (old.weights_sha256, old.spec) != (new.weights_sha256, new.spec):
        return new
    quality, timing = (
        {**old.quality, **new.quality},
        {**old.protocol_timing, **new.protocol_timing},
    )
    return replace(new, quality=quality, protocol_timing=timing)


def make_result(model: Model, scores: Scores, data: str, runtime: Timing) -> Result:
    """Return the result of one model on one dataset.

    Args:
        model: The model, whose cost is counted.
        scores: Its scores on the dataset.
        data: Name of the dataset.
        runtime: Its runtime at 1x256x256x3.
    """
    cost = cost_of(model.method, model.net)
    return Result(
        method=model.name,
        team=model.method.team,
        weights_sha256=model.checkpoint.sha256,
        spec=scores.spec,
        quality={data: _dataset_metrics(scores)},
        params=cost.params,
        macs=cost.macs,
        activations=cost.activations,
        convs=cost.convs,
        runtime=runtime,
        versions={name: metadata.version(name) for name in ("esrjax", "jax", "flax", "numpy")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _dataset_metrics(scores: Scores) -> DatasetMetrics:
    mean, psnr = scores.mean, {name: metrics.psnr for name, metrics in scores.images.items()}
    return DatasetMetrics(psnr=mean.psnr, ssim=mean.ssim, num_images=len(psnr), psnr_per_image=psnr)


def check_rankable(models: Sequence[Model | EnsembleModel], folder: Path) -> list[Model]:
    """Return the models if all are single networks and results can be written into `folder`.

    Raises:
        NotRankable: One of them is an ensemble.
        UnwritableResults: The folder cannot be written into.
    """
    record.check_writable_folder(folder)
    return [_single_network(model) for model in models]


def _single_network(model: Model | EnsembleModel) -> Model:
    if isinstance(model, Model):
        return model
    raise NotRankable(
        f"{model.name!r} is an ensemble",
        rule="the challenge ranks single networks",
        remedy=f"evaluate its members: {', '.join(model.members)}",
    )
