"""Measurements for the challenge: cost, protocol timing, and results of models as files.

Protocol timing is the runtime over the images of a dataset as the organisers' program measures it:
it runs every image once, in order, one forward pass timed from the call until the device is done.
There is no repetition, no outlier is dropped, and the first image counts in the mean; it has no
warm-up but what a team's constructor or loader ran. JAX adds one thing, a compilation for each
image size. These are compiled before the loop, outside the timing, and not called there.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax import inference, registry
from esrjax.bench import timing
from esrjax.bench.record import Timing
from esrjax.bench.timing import forward_fn
from esrjax.challenge import record
from esrjax.challenge.record import BaselineTiming, DatasetMetrics, ProtocolTiming, Result
from esrjax.challenge.rules import Rules, check_scale
from esrjax.data.datasets import Pair, Progress
from esrjax.errors import RankingError
from esrjax.evaluation.score import Scores
from esrjax.evaluation.upscale import ImageSize, count_windows, padded_size, to_network_input
from esrjax.inference import EnsembleModel, Model, check_min_side
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
    model: Model, pairs: Sequence[Pair], rules: Rules, progress: Progress = iter
) -> ProtocolTiming:
    """Time each image once, as the organisers' program does.

    For a cold start as in the challenge this must be the first work of its process.

    Args:
        model: Model to time.
        pairs: LR/HR pairs of the dataset, in order; only the LR images are used.
        rules: Rules with the warm-up passes of the model's team.
        progress: Wraps the pairs, for example in a progress bar.

    Raises:
        ImageTooSmall: An LR image is smaller than the method accepts; nothing has run by then.
    """
    shapes = dict.fromkeys(_load_lr(model, pair).shape for pair in pairs)
    forward = forward_fn(model.net)
    compiled = {shape: timing.compile_forward(forward, jnp.zeros(shape)) for shape in shapes}
    passes = rules.num_warmup_passes(model.method.team)
    if rules.timing and passes:
        lr = jnp.zeros((1, rules.timing.lr_side, rules.timing.lr_side, 3))
        warmup = timing.compile_forward(forward, lr)
        for _ in range(passes):
            timing.time_forward_ms(warmup, lr)
    times: dict[str, float] = {}
    for pair in progress(pairs):
        lr = _load_lr(model, pair)
        times[pair.name] = timing.time_forward_ms(compiled[lr.shape], lr)
    return ProtocolTiming(
        ms_per_image=times,
        warmup_passes=passes,
        num_shapes=len(compiled),
        compile_s=sum(program.compile_s for program in compiled.values()),
        peak_mib=timing.peak_memory_mib(),
        executable_mib=max((p.executable_mib or 0 for p in compiled.values()), default=0) or None,
        device=timing.device_name(),
        implementation=ops.implementation.value,
    )


def _load_lr(model: Model, pair: Pair) -> Array:
    """LR image (1, h, w, 3), float32, with values in [0, data_range], already on the device."""
    pixels = pair.load()[0]
    check_min_side(model.name, model.method.min_side, pixels.shape[:2])
    lr = to_network_input(pixels, model.method.data_range)[None]
    return jax.block_until_ready(jax.device_put(lr))


# --- results ---


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
        RankingError: One of the models is an ensemble.
        UnwritableFile: The folder cannot be written into.
        UnreadableFile: A result file of a model exists, but is malformed.
    """
    single = check_rankable(models, folder)
    paths = tuple(folder / f"{model.name}.json" for model in single)
    previous = [record.load_result(path) if path.exists() else None for path in paths]
    timings, baseline_timing = time_models(single, baseline)
    protocol_timings = protocol_timings or {}
    for model, scores, old, path in zip(single, scored, previous, paths, strict=True):
        name = model.name
        new = replace(
            make_result(model, scores, data, timings[name]),
            baseline=baseline_timing,
            protocol_timing={data: protocol_timings[name]} if name in protocol_timings else {},
        )
        record.save_result(_with_other_datasets(new, old), path)
    return paths


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
    forwards = {model.name: forward_fn(model.net) for model in models}
    if baseline is None:
        return timing.time_networks(forwards, TIMING_SHAPE), None
    method = registry.get_method(baseline)
    net = deploy(method.build())
    cost = cost_of(method, net)
    timings = timing.time_networks({baseline: forward_fn(net), **forwards}, TIMING_SHAPE)
    runtime, team = timings[baseline], method.team
    return timings, BaselineTiming(
        method=baseline, team=team, params=cost.params, macs=cost.macs, runtime=runtime
    )


def _with_other_datasets(new: Result, old: Result | None) -> Result:
    """`new`, plus the other datasets of `old` if that has the same weights and metric."""
    if old is None or (old.weights_sha256, old.spec) != (new.weights_sha256, new.spec):
        return new
    return replace(
        new,
        quality={**old.quality, **new.quality},
        protocol_timing={**old.protocol_timing, **new.protocol_timing},
    )


def make_result(model: Model, scores: Scores, data: str, runtime: Timing) -> Result:
    """Return the result of one model on one dataset.

    Args:
        model: The model, whose cost is counted.
        scores: Its scores on the dataset.
        data: Name of the dataset.
        runtime: Its runtime at 1x256x256x3.
    """
    cost, means = cost_of(model.method, model.net), vars(scores.mean)
    psnr = {name: metrics.psnr for name, metrics in scores.images.items()}
    return Result(
        method=model.name,
        team=model.method.team,
        weights_sha256=model.checkpoint.sha256,
        spec=scores.spec,
        quality={data: DatasetMetrics(**means, num_images=len(psnr), psnr_per_image=psnr)},
        params=cost.params,
        macs=cost.macs,
        activations=cost.activations,
        convs=cost.convs,
        runtime=runtime,
        versions={name: metadata.version(name) for name in ("esrjax", "jax", "flax", "numpy")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def check_rankable(models: Sequence[Model | EnsembleModel], folder: Path) -> list[Model]:
    """Return the models if all are single networks and results can be written into `folder`.

    Raises:
        RankingError: One of them is an ensemble, or of another scale than the challenge.
        UnwritableFile: The folder cannot be written into.
    """
    record.check_writable_folder(folder)
    for model in models:
        if not isinstance(model, Model):
            raise RankingError(
                f"{model.name!r} is an ensemble",
                rule="the challenge ranks single networks",
                remedy=f"evaluate its members: {', '.join(model.members)}",
            )
        check_scale(model.name, model.scale, "leave out -o; --json prints the scores")
    return [model for model in models if isinstance(model, Model)]
