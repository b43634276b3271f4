"""Wide -> narrow, without declarations: where two networks differ in size, they are pruned."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from esrjax.errors import UserError
from esrjax.network.layers import Conv2d, GroupNorm
from esrjax.network.weights import leaves

Net = TypeVar("Net", bound=nnx.Module)
Keep = Literal["first", "l1"]
Leaves = Mapping[str, nnx.Variable[Any]]
SHOWN = 3


class Unprunable(UserError):
    """Two networks whose shapes do not say which channels are pruned."""


class Cut(NamedTuple):
    """An axis of a weight that is shortened."""

    path: str
    axis: int
    wide: int
    narrow: int


def shrink(wide: nnx.Module, narrow: Net, keep: Keep) -> Net:
    """A copy of `narrow`, abstract or not, with what `wide` has in the channels that are kept.

    All axes that differ are one group, of which the same channels go: the last ones, or, to keep
    "l1", those whose weights sum to the least magnitude over all these axes. Refused are shapes
    that leave doubt: axes of two sizes, as where features are joined or multiplied, channels that
    work in groups, and axes that are not of channels. Channels that are shuffled, or split into
    heads, with no weights of another size at hand, show in no shape: a plugin of such a network
    prunes it itself.
    """
    given = dict(leaves(wide))
    cuts = _cuts(wide, narrow)
    kept = np.arange(cuts[0].narrow) if keep == "first" else _heaviest(given, cuts)
    filled = nnx.clone(narrow)
    for path, leaf in leaves(filled):
        value = given[path].get_value()
        for cut in cuts:
            value = jnp.take(value, kept, cut.axis) if cut.path == path else value
        leaf.set_value(value)
    return filled


def _heaviest(given: Leaves, cuts: Sequence[Cut]) -> NDArray[np.intp]:
    """The channels of the largest summed magnitude, in their order; of equals the first."""
    total = np.zeros(cuts[0].wide)
    for path, axis, *_ in cuts:
        if isinstance(given[path], nnx.Param):  # statistics are no weights
            magnitude = np.abs(np.asarray(given[path].get_value(), np.float64))
            total += np.moveaxis(magnitude, axis, 0).reshape(len(total), -1).sum(1)
    return np.sort(np.argsort(-total, kind="stable")[: cuts[0].narrow])


def _cuts(wide: nnx.Module, narrow: nnx.Module) -> list[Cut]:
    """The axes in which the two differ, where they are plainly one group."""
    ours, theirs = _shapes(wide), _shapes(narrow)
    shared = [path for path in ours if path in theirs]
    cuts = [cut for path in shared for cut in _differences(path, ours[path], theirs[path])]
    problems = [
        *_listed("only in the wide network", [path for path in ours if path not in theirs]),
        *_listed("only in the narrow network", [path for path in theirs if path not in ours]),
        *_listed("with more axes in one", [p for p in shared if len(ours[p]) != len(theirs[p])]),
        *_listed(
            "cut along an axis that is not of channels",
            [cut.path for cut in cuts if not _of_channels(cut, ours[cut.path])],
        ),
    ] or [*_other_than_one(cuts), *_torn(wide, narrow, cuts)]
    if problems:
        raise _unprunable(problems)
    return cuts


def _shapes(net: nnx.Module) -> dict[str, tuple[int, ...]]:
    return {path: tuple(leaf.get_value().shape) for path, leaf in leaves(net)}


def _differences(path: str, wide: Sequence[int], narrow: Sequence[int]) -> list[Cut]:
    pairs = enumerate(zip(wide, narrow, strict=False))
    return [Cut(path, axis, old, new) for axis, (old, new) in pairs if old != new]


def _of_channels(cut: Cut, shape: Sequence[int]) -> bool:
    """Whether it is one of the last two axes of a kernel, or the only one of a bias or a scale."""
    if cut.path.split(".")[-1] == "weight":
        return cut.axis >= len(shape) - 2
    return all(size == 1 for axis, size in enumerate(shape) if axis != cut.axis)


def _other_than_one(cuts: Sequence[Cut]) -> list[str]:
    """What is wrong where the axes do not all shrink, and all alike."""
    if not cuts:
        return ["no axis differs"]
    paths: dict[tuple[int, int], list[str]] = {}
    for cut in cuts:
        paths.setdefault((cut.wide, cut.narrow), []).append(cut.path)
    (old, new), *others = paths
    if old > new and not others:
        return []
    return [
        line
        for (old, new), named in paths.items()
        for line in _listed(f"{old} channels become {new}", named)
    ]


def _torn(wide: nnx.Module, narrow: nnx.Module, cuts: Sequence[Cut]) -> Iterator[str]:
    """Layers that see channels in groups, and would see others together; depthwise ones do not."""
    parts = {".".join(map(str, path)): part for path, part in nnx.iter_modules(narrow)}
    changed = {cut.path for cut in cuts}
    for path, part in nnx.iter_modules(wide):
        name = ".".join(map(str, path))
        if not isinstance(part, Conv2d | GroupNorm) or f"{name}.weight" not in changed:
            continue
        if part.groups > 1 and not (_depthwise(part) and _depthwise(parts[name])):
            yield f"{name} sees its channels in {part.groups} groups"


def _depthwise(part: Any) -> bool:
    return isinstance(part, Conv2d) and part.weight.shape[2:] == (1, part.groups)


def _listed(what: str, paths: Sequence[str]) -> list[str]:
    """One line with the first of the paths, none where there are none."""
    paths = list(dict.fromkeys(paths))
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return [f"{what}: {', '.join(paths[:SHOWN])}{more}"] if paths else []


def _unprunable(problems: Sequence[str]) -> Unprunable:
    return Unprunable(
        "the shapes do not say what is pruned:\n    " + "\n    ".join(problems),
        rule="two networks of the same weights differ in one number of channels, wherever it is",
        remedy="prune the deploy form, and one size at a time; where shapes cannot tell, "
        "the plugin slices the weights itself",
    )
