"""Channel pruning between two networks of one class, by the axes in which their shapes differ."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from esrjax.errors import WeightsMismatch, list_some
from esrjax.nn.layers import Conv2d, GroupNorm
from esrjax.nn.state_dict import named_parameters

Net = TypeVar("Net", bound=nnx.Module)
Criterion = Literal["first", "l1"]
Weights = Mapping[str, nnx.Variable[Any]]
MAX_LISTED = 3  # paths in a line of an error


class PrunedAxis(NamedTuple):
    """An axis of a weight that has fewer channels in the pruned network."""

    path: str
    axis: int
    old_size: int
    new_size: int


def prune_channels(source: nnx.Module, target: Net, criterion: Criterion) -> Net:
    """Return a copy of `target` with the weights of `source` in the channels that remain.

    All axes in which the two differ are one group: the same channels are removed from each of them.
    Shapes that leave doubt are refused: axes of two sizes (features that are concatenated or
    expanded), channels in groups, and axes that are not of channels. Channels that are shuffled, or
    split into heads, without a weight of another size, cannot be seen in any shape: the plugin of
    such a network must prune it itself.

    Args:
        source: The network to prune.
        target: The same network with fewer channels; an abstract one will do.
        criterion: Which channels remain: the "first" ones, or those of the largest "l1" norm,
            summed over all weights of these axes.

    Raises:
        WeightsMismatch: The shapes leave doubt.
    """
    weights = dict(named_parameters(source))
    pruned_axes = _pruned_axes(source, target)
    channels = (
        np.arange(pruned_axes[0].new_size)
        if criterion == "first"
        else _largest_l1(weights, pruned_axes)
    )
    pruned_net = nnx.clone(target)
    for path, variable in named_parameters(pruned_net):
        value = weights[path].get_value()
        for pruned in pruned_axes:
            value = jnp.take(value, channels, pruned.axis) if pruned.path == path else value
        variable.set_value(value)
    return pruned_net


def _largest_l1(weights: Weights, pruned_axes: Sequence[PrunedAxis]) -> NDArray[np.intp]:
    """Return the channels of the largest L1 norm in their order; of equal ones the first."""
    l1_norms = np.zeros(pruned_axes[0].old_size)
    for path, axis, *_ in pruned_axes:
        if isinstance(weights[path], nnx.Param):  # not the statistics of a BatchNorm
            magnitude = np.abs(np.asarray(weights[path].get_value(), np.float64))
            l1_norms += np.moveaxis(magnitude, axis, 0).reshape(len(l1_norms), -1).sum(1)
    return np.sort(np.argsort(-l1_norms, kind="stable")[: pruned_axes[0].new_size])


def _pruned_axes(source: nnx.Module, target: nnx.Module) -> list[PrunedAxis]:
    """Return the axes in which the two differ, if these are one group of channels."""
    old_shapes, new_shapes = _shapes(source), _shapes(target)
    shared = [path for path in old_shapes if path in new_shapes]
    pruned_axes = [
        PrunedAxis(path, axis, old_size, new_size)
        for path in shared
        for axis, (old_size, new_size) in enumerate(
            zip(old_shapes[path], new_shapes[path], strict=False)
        )
        if old_size != new_size
    ]
    paths_by_problem = {
        "only in the source network": [path for path in old_shapes if path not in new_shapes],
        "only in the target network": [path for path in new_shapes if path not in old_shapes],
        "with different numbers of axes": [
            path for path in shared if len(old_shapes[path]) != len(new_shapes[path])
        ],
        "pruned along an axis that is not of channels": [
            pruned.path
            for pruned in pruned_axes
            if not _is_channel_axis(pruned, old_shapes[pruned.path])
        ],
    }
    problems = _problem_lines(paths_by_problem) or [
        *_inconsistent(pruned_axes),
        *_grouped_layers(source, target, pruned_axes),
    ]
    if problems:
        raise WeightsMismatch(
            "The shapes do not determine which channels are pruned:\n    "
            + "\n    ".join(problems),
            rule="the two networks have the same weights and differ in one number of channels only",
            remedy="prune the deploy form, one hyperparameter at a time; where shapes leave doubt, "
            "the plugin must slice the weights itself",
        )
    return pruned_axes


def _shapes(net: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.get_value().shape) for path, leaf in named_parameters(net)}


def _is_channel_axis(pruned: PrunedAxis, shape: Sequence[int]) -> bool:
    """Return whether it is one of the last two axes of a kernel, or the only one of a vector."""
    if pruned.path.split(".")[-1] == "weight":
        return pruned.axis >= len(shape) - 2
    return all(size == 1 for axis, size in enumerate(shape) if axis != pruned.axis)


def _inconsistent(pruned_axes: Sequence[PrunedAxis]) -> list[str]:
    """Return the problems if the axes do not all become smaller, from one size to one other."""
    if not pruned_axes:
        return ["no axis differs"]
    paths: dict[str, list[str]] = {}
    for path, _, old_size, new_size in pruned_axes:
        paths.setdefault(f"{old_size} channels become {new_size}", []).append(path)
    is_smaller = pruned_axes[0].old_size > pruned_axes[0].new_size
    return [] if is_smaller and len(paths) == 1 else _problem_lines(paths)


def _grouped_layers(
    source: nnx.Module, target: nnx.Module, pruned_axes: Sequence[PrunedAxis]
) -> Iterator[str]:
    """Yield the pruned layers whose groups would contain other channels than before.

    Depthwise convolutions that remain depthwise are not among them.
    """
    target_modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(target)}
    changed_paths = {pruned.path for pruned in pruned_axes}
    for path, module in nnx.iter_modules(source):
        name = ".".join(map(str, path))
        if not isinstance(module, Conv2d | GroupNorm) or f"{name}.weight" not in changed_paths:
            continue
        groups = module.groups if isinstance(module, Conv2d) else module.num_groups
        if groups > 1 and not (_is_depthwise(module) and _is_depthwise(target_modules[name])):
            yield f"{name} has {groups} groups of channels"


def _is_depthwise(module: Any) -> bool:
    return isinstance(module, Conv2d) and module.weight.shape[2:] == (1, module.groups)


def _problem_lines(paths_by_problem: Mapping[str, list[str]]) -> list[str]:
    """Return a line for each problem that lists the first of its paths; none without paths."""
    return [
        f"{problem}: {list_some(dict.fromkeys(paths), MAX_LISTED)}"
        for problem, paths in paths_by_problem.items()
        if paths
    ]
