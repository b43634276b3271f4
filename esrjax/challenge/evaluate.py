"""Measurements for the challenge: cost, protocol timing, and results of models as files.

Protocol timing is the runtime over the images of a dataset as the organisers' program measures it:
it runs every image once, in order, one forward pass timed from the call until the device is done.
There is no repetition, no outlier is dropped, and the first image counts in the mean; it has no
warm-up but what a team's constructor or loader ran. JAX adds one thing, a compilation for each
image size. These are compiled before the loop, outside the timing, and not called there.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax import inference, registry
from esrjax.bench import Timing, timing
from esrjax.bench.timing import forward_fn
from esrjax.challenge import record
from esrjax.challenge.record import BaselineTiming, DatasetMetrics, ProtocolTiming, Result
from esrjax.challenge.rules import Rules, check_scale
from esrjax.data.datasets import LrImage, Pair, Progress
from esrjax.errors import RankingError, list_some
from esrjax.evaluation.score import Scores
from esrjax.evaluation.upscale import (
    ImageSize,
    check_min_side,
    count_windows,
    padded_size,
    to_network_input,
)
from esrjax.inference import EnsembleModel, Model
from esrjax.loading import abstract_network
from esrjax.method import Member, Method
from esrjax.nn import ops
from esrjax.nn.cost import Cost, OpCost, cost_of
from esrjax.nn.reparam import deploy

TIMING_SHAPE = (1, 256, 256, 3)  # shape of the LR image that runtimes are measured on
SELF_ENSEMBLE_PASSES = 8  # flips and rotations of the x8 geometric self-ensemble
_COST_OF_PASSES = ("macs", "macs_full", "activations", "convs")  # what every pass adds


def method_cost(
    name: str,
    *,
    image_size: ImageSize = (256, 256),
    files: Mapping[str, Path] | None = None,
    hparams: Mapping[str, Any] | None = None,
) -> Cost:
    """Return the cost of a method, or of all passes of an ensemble, for one LR image.

    Args:
        name: A registered method or ensemble.
        image_size: Height and width of the LR image, pixels.
        files: Checkpoints by method; a method without one is built with `hparams`.
        hparams: Hyper-parameters of the network; the defaults where None.

    Raises:
        ImageTooSmall: The image is smaller than a method accepts.
        InvalidArgument: `files` or `hparams` do not fit the ensemble.
    """
    entry, files = registry.get_entry(name), files or {}
    if isinstance(entry, Method):
        check_min_side(name, entry.min_side, image_size)
        return cost_of(entry, _network(name, entry, files, hparams or {}), image_size=image_size)
    inference.check_ensemble(name, entry, files, hparams)
    totals, ops = Counter[str](), list[OpCost]()
    for member_name, member in entry.members.items():
        method = registry.get_method(member_name)
        check_min_side(member_name, method.min_side, image_size)
        member_hparams = inference.member_hparams(member_name, hparams)
        net = _network(member_name, method, files, member_hparams)
        passes = _passes(member, image_size)
        costs = {size: cost_of(method, net, image_size=size) for size in passes}
        shared = next(iter(costs.values()))  # all passes have the same parameters
        totals.update(params=shared.params, params_full=shared.params_full)
        for size, count in passes.items():
            totals.update(_multiply(costs[size], count))
            ops += [_member_op(op, member_name, count) for op in costs[size].ops]
    return Cost(**totals, ops=tuple(ops))


def _network(
    name: str, method: Method, files: Mapping[str, Path], hparams: Mapping[str, Any]
) -> nnx.Module:
    if name in files:
        return inference.open_method(name, files[name], hparams).net
    return abstract_network(method, "deploy", hparams)


def _member_op(op: OpCost, member: str, count: int) -> OpCost:
    """Op of a member that runs `count` times, with the member's name in its path."""
    path = f"{member}.{op.path}" if op.path else member
    return replace(op, path=path, **_multiply(op, count))


def _multiply(cost: Cost | OpCost, count: int) -> dict[str, int]:
    return {name: count * getattr(cost, name) for name in _COST_OF_PASSES}


def _passes(member: Member, size: ImageSize) -> Counter[ImageSize]:
    """Size of the network's input -> number of passes of that size, for an LR image of `size`."""
    passes: Counter[ImageSize] = Counter()
    windows = count_windows(size, member.windows) if member.windows else {size: 1}
    for window, count in windows.items():
        padded = padded_size(window, member.pad_multiple) if member.pad_multiple else window
        passes[padded] += count * (SELF_ENSEMBLE_PASSES if member.self_ensemble else 1)
    return passes


# --- protocol timing ---


def time_by_protocol(
    model: Model,
    images: Sequence[Pair] | Sequence[LrImage],
    rules: Rules,
    progress: Progress = iter,
    num_runs: int = 1,
) -> ProtocolTiming:
    """Time each image once in every run, as the organisers' program does.

    For a cold start as in the challenge this must be the first work of its process.

    Args:
        model: Model to time.
        images: The images of the dataset, in order; only LR is used, and HR need not exist.
        rules: Rules with the warm-up passes of the model's team.
        progress: Wraps the images, for example in a progress bar.
        num_runs: Number of runs over all images; the runtime of an image is the mean of its runs.
            They are runs of one process: only the first starts cold.

    Raises:
        ImageTooSmall: An LR image is smaller than the method accepts; nothing has run by then.
    """
    shapes = dict.fromkeys(_load_lr(model, image).shape for image in images)
    forward = forward_fn(model.net)
    compiled = {shape: timing.compile_forward(forward, jnp.zeros(shape)) for shape in shapes}
    passes = rules.num_warmup_passes(model.method.team)
    if rules.timing and passes:
        lr = jnp.zeros((1, rules.timing.lr_side, rules.timing.lr_side, 3))
        warmup = timing.compile_forward(forward, lr)
        for _ in range(passes):
            timing.time_forward_ms(warmup, lr)
    runs_ms: dict[str, list[float]] = {image.name: [] for image in images}
    for image in progress(cast(Any, [*images] * num_runs)):  # it is typed for pairs
        lr = _load_lr(model, image)
        runs_ms[image.name].append(timing.time_forward_ms(compiled[lr.shape], lr))
    return ProtocolTiming(
        ms_per_image={name: fmean(times) for name, times in runs_ms.items()},
        num_runs=num_runs,
        warmup_passes=passes,
        num_shapes=len(compiled),
        compile_s=sum(program.compile_s for program in compiled.values()),
        peak_mib=timing.peak_memory_mib(),
        executable_mib=max((p.executable_mib or 0 for p in compiled.values()), default=0) or None,
        device=timing.device_name(),
        implementation=ops.implementation.value,
    )


def _load_lr(model: Model, image: Pair | LrImage) -> Array:
    """LR image (1, h, w, 3), float32, with values in [0, data_range], already on the device."""
    pixels = image.load_lr()
    check_min_side(model.name, model.method.min_side, pixels.shape[:2])
    lr = to_network_input(pixels, model.method.data_range)[None]
    return jax.block_until_ready(jax.device_put(lr))


# --- results ---


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model and what was measured of it, for one result file.

    Attributes:
        label: Name of the model in tables, and of its result file.
        model: The model.
        scores: Name of a dataset -> scores.
        protocol_timing: Name of a dataset -> runtime over its images.
    """

    label: str
    model: Model
    scores: Mapping[str, Scores]
    protocol_timing: Mapping[str, ProtocolTiming] = field(default_factory=dict[str, ProtocolTiming])


def write_results(
    evaluations: Sequence[Evaluation],
    folder: Path,
    *,
    baseline: str | None = None,
    on_note: Callable[[str], object] = lambda _: None,
) -> tuple[Path, ...]:
    """Time models, interleaved, and write one result file for each.

    A file that has the same weights and metric keeps the results of its other datasets.

    Args:
        evaluations: Models and their scores.
        folder: Folder of the result files, `LABEL.json`; created if needed.
        baseline: A method to time interleaved with the models, untrained; None for no baseline.
        on_note: Receives which results of other weights are replaced.

    Returns:
        The paths of the result files.

    Raises:
        RankingError: A PSNR is infinite, so that it has no mean.
        UnwritableFile: The folder cannot be written into.
        UnreadableFile: A result file of a model exists, but is malformed.
    """
    record.check_writable_folder(folder)
    _check_finite(evaluations)
    paths = tuple(folder / f"{evaluation.label}.json" for evaluation in evaluations)
    previous = [record.load_result(path) if path.exists() else None for path in paths]
    models = {evaluation.label: evaluation.model for evaluation in evaluations}
    timings, baseline_timing = time_models(models, baseline)
    for evaluation, old, path in zip(evaluations, previous, paths, strict=True):
        result = replace(
            make_result(
                evaluation.model, evaluation.scores, timings[evaluation.label], evaluation.label
            ),
            baseline=baseline_timing,
            protocol_timing=evaluation.protocol_timing,
        )
        if old is not None and not _is_same(result, old):
            on_note(f"{path} is replaced: it had other weights or another metric")
        record.save_result(_with_other_datasets(result, old), path)
    return paths


def _check_finite(evaluations: Sequence[Evaluation]) -> None:
    """Raise `RankingError` if an image is reproduced exactly: its PSNR is infinite."""
    exact = [
        f"{image} of {dataset} by {evaluation.label}"
        for evaluation in evaluations
        for dataset, scores in evaluation.scores.items()
        for image, metrics in scores.images.items()
        if not math.isfinite(metrics.psnr)
    ]
    if exact:
        raise RankingError(
            f"The PSNR is infinite: {list_some(exact)}",
            rule="results hold a mean PSNR, which an image without any error makes infinite",
            remedy="leave such images out of the dataset, or leave -o out",
        )


def baseline_name(rules: Rules) -> str | None:
    """Return the name of the baseline's method, or None if it is not installed."""
    name = rules.baseline.method
    return name if name in registry.names() else None


def time_models(
    models: Mapping[str, Model], baseline: str | None
) -> tuple[dict[str, Timing], BaselineTiming | None]:
    """Time models at 1x256x256x3, interleaved with each other and with the baseline.

    Args:
        models: Label -> model to time.
        baseline: Name of the baseline's method; a model that is the same network is timed once.

    Returns:
        The runtimes by label, and the runtime and cost of the baseline if there is one.
    """
    forwards = {label: forward_fn(model.net) for label, model in models.items()}
    if baseline is None:
        return timing.time_networks(forwards, TIMING_SHAPE), None
    method = registry.get_method(baseline)
    net = deploy(method.build())
    cost = cost_of(method, net)
    defaults = method.default_hparams()
    same = (
        label
        for label, model in models.items()
        if model.name == baseline and {**defaults, **model.hparams} == defaults
    )
    label = next(same, f"{baseline} (baseline)")
    timings = timing.time_networks({label: forward_fn(net), **forwards}, TIMING_SHAPE)
    return timings, BaselineTiming(
        method=baseline,
        team=method.team,
        params=cost.params,
        macs=cost.macs,
        runtime=timings[label],
    )


def _is_same(new: Result, old: Result) -> bool:
    return (old.weights_sha256, old.spec) == (new.weights_sha256, new.spec)


def _with_other_datasets(new: Result, old: Result | None) -> Result:
    """`new`, plus the other datasets of `old` if that has the same weights and metric."""
    if old is None or not _is_same(new, old):
        return new
    return replace(
        new,
        quality={**old.quality, **new.quality},
        protocol_timing={**old.protocol_timing, **new.protocol_timing},
    )


def make_result(
    model: Model, scores: Mapping[str, Scores], runtime: Timing, label: str | None = None
) -> Result:
    """Return the result of one model.

    Args:
        model: The model, whose cost is counted.
        scores: Name of a dataset -> its scores, all under one metric spec.
        runtime: Its runtime at 1x256x256x3.
        label: Name of the model; that of the method by default.
    """
    cost = cost_of(model.method, model.net)
    (spec,) = {s.spec for s in scores.values()}
    return Result(
        method=model.name,
        label=None if label == model.name else label,
        team=model.method.team,
        weights_sha256=model.checkpoint.sha256,
        weights_origin=model.origin,
        spec=spec,
        quality={name: _dataset_metrics(s) for name, s in scores.items()},
        params=cost.params,
        macs=cost.macs,
        activations=cost.activations,
        convs=cost.convs,
        runtime=runtime,
        versions={name: metadata.version(name) for name in ("esrjax", "jax", "flax", "numpy")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _dataset_metrics(scores: Scores) -> DatasetMetrics:
    psnr = {name: metrics.psnr for name, metrics in scores.images.items()}
    return DatasetMetrics(
        **vars(scores.mean),
        num_images=len(psnr),
        psnr_per_image=psnr,
        images_sha256=scores.images_sha256,
    )


def check_rankable(models: Mapping[str, Model | EnsembleModel], folder: Path) -> dict[str, Model]:
    """Return the models if all are single networks and results can be written into `folder`.

    Raises:
        RankingError: One of them is an ensemble, or of another scale than the challenge.
        UnwritableFile: The folder cannot be written into.
    """
    record.check_writable_folder(folder)
    for model in models.values():
        if not isinstance(model, Model):
            raise RankingError(
                f"{model.name!r} is an ensemble",
                rule="the challenge ranks single networks",
                remedy=f"evaluate its members: {', '.join(model.members)}",
            )
        check_scale(model.name, model.scale, "leave out -o; --json prints the scores")
    return {label: model for label, model in models.items() if isinstance(model, Model)}
