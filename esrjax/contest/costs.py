"""Cost of a registered method, or of all passes of an ensemble."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flax import nnx

from esrjax import registry
from esrjax.evaluation.upscale import ImageSize, count_windows, padded_size
from esrjax.method import Member, Method
from esrjax.model import check_ensemble, check_min_side, member_hparams, open_method
from esrjax.network.cost import Cost, cost_of
from esrjax.network.work import OpCost
from esrjax.recognition import abstract_network

SELF_ENSEMBLE_PASSES = 8  # flips and rotations of the x8 geometric self-ensemble


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
        BadEnsemble: `files` or `hparams` do not fit the ensemble.
    """
    entry, files = registry.get_entry(name), files or {}
    if isinstance(entry, Method):
        check_min_side(name, entry.min_side, image_size)
        return cost_of(entry, _network(name, entry, files, hparams or {}), image_size=image_size)
    check_ensemble(name, entry, files, hparams)
    members = entry.members.items()
    return _sum(
        [
            _member_cost(method, member, image_size, files, member_hparams(method, hparams))
            for method, member in members
        ]
    )


def _network(
    name: str, method: Method, files: Mapping[str, Path], hparams: Mapping[str, Any]
) -> nnx.Module:
    if name in files:
        return open_method(name, files[name], hparams).net
    return abstract_network(method, "deploy", hparams)


def _member_cost(
    name: str,
    member: Member,
    image_size: ImageSize,
    files: Mapping[str, Path],
    hparams: Mapping[str, Any],
) -> Cost:
    """Cost of all passes of a member; its parameters count once, as all passes share them."""
    method = registry.get_method(name)
    check_min_side(name, method.min_side, image_size)
    net = _network(name, method, files, hparams)
    costs = [
        _multiply(cost_of(method, net, image_size=size), name, count)
        for size, count in _passes(member, image_size).items()
    ]
    return replace(_sum(costs), params=costs[0].params, params_full=costs[0].params_full)


def _passes(member: Member, size: ImageSize) -> Counter[ImageSize]:
    """Size of the network's input -> number of passes of that size, for an LR image of `size`."""
    passes: Counter[ImageSize] = Counter()
    windows = count_windows(size, member.windows) if member.windows else {size: 1}
    for window, count in windows.items():
        padded = padded_size(window, member.pad_multiple) if member.pad_multiple else window
        passes[padded] += count * (SELF_ENSEMBLE_PASSES if member.self_ensemble else 1)
    return passes


def _multiply(cost: Cost, member: str, count: int) -> Cost:
    """Cost of `count` passes, its ops with the member's name in their path."""
    return replace(
        cost,
        macs=cost.macs * count,
        macs_full=cost.macs_full * count,
        activations=cost.activations * count,
        convs=cost.convs * count,
        ops=tuple(_multiply_op(op, member, count) for op in cost.ops),
    )


def _multiply_op(op: OpCost, member: str, count: int) -> OpCost:
    return replace(
        op,
        path=f"{member}.{op.path}" if op.path else member,
        macs_full=op.macs_full * count,
        macs=op.macs * count,
        activations=op.activations * count,
        convs=op.convs * count,
    )


def _sum(costs: list[Cost]) -> Cost:
    return Cost(
        params=sum(cost.params for cost in costs),
        params_full=sum(cost.params_full for cost in costs),
        macs=sum(cost.macs for cost in costs),
        macs_full=sum(cost.macs_full for cost in costs),
        activations=sum(cost.activations for cost in costs),
        convs=sum(cost.convs for cost in costs),
        ops=tuple(op for cost in costs for op in cost.ops),
    )
