"""Named tensors <-> networks: both sides exact, all or nothing."""

import difflib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.errors import UserError
from esrjax.network.archive import Tensors
from esrjax.network.naming import Naming

Net = TypeVar("Net", bound=nnx.Module)
WEIGHTS = (nnx.Param, nnx.BatchStat)
SHOWN = 10


class WeightsMismatch(UserError):
    """The tensors of a checkpoint are not those of the network. count: of tensors that differ."""

    count: int = 0


def tensors(net: nnx.Module, naming: Naming) -> Tensors:
    """The weights of `net` under PyTorch's names and in PyTorch's layout."""
    return {naming.to_torch(path): _to_torch(leaf) for path, leaf in leaves(net)}


def load(
    net: Net,
    held: Mapping[str, np.ndarray[Any, Any]],
    naming: Naming,
    unused: Mapping[str, str] | None = None,
    place: str | None = None,
) -> Net:
    """A copy of `net`, abstract or not, with the weights `held` in PyTorch's names and layout.

    unused: globs of keys that have no place in the network. place: the file, for the error.
    """
    filled = nnx.clone(net)
    kept = [key for key in held if not _matches(key, unused or {})]
    given = {naming.to_flax(key): key for key in kept}
    wanted = dict(leaves(filled))
    problems = _problems(wanted, given, held, naming)
    for key in kept:
        if given[naming.to_flax(key)] != key:
            problems.append(f"of one place: {key} and {given[naming.to_flax(key)]}")
    if problems:
        raise _mismatch(problems, len(set(wanted) | set(given)), place)
    for path, leaf in wanted.items():
        leaf.set_value(_from_torch(leaf, held[given[path]]))
    return filled


def leaves(net: nnx.Module) -> Iterator[tuple[str, nnx.Variable[Any]]]:
    """Every weight of `net` by its path, `block_1.c1.weight`."""
    for path, node in nnx.iter_graph(net):
        if isinstance(node, WEIGHTS):
            yield ".".join(map(str, path)), node


def cast(net: Net, dtype: Any) -> Net:
    """A copy of `net` with its weights in `dtype`."""
    copy = nnx.clone(net)
    for _, leaf in leaves(copy):
        leaf.set_value(leaf.get_value().astype(dtype))
    return copy


def scattered(net: Net, amount: float = 0.05, *, seed: int = 1) -> Net:
    """A copy with every weight moved at random, away from the 0 and 1 that hide mistakes."""
    copy = nnx.clone(net)
    draw = np.random.default_rng(seed)
    for _, leaf in leaves(copy):
        value = np.asarray(leaf.get_value())  # in numpy, which compiles nothing
        moved = value + amount * draw.standard_normal(value.shape)
        leaf.set_value(jnp.asarray(moved.astype(value.dtype)))
    return copy


def _to_torch(leaf: nnx.Variable[Any]) -> np.ndarray[Any, Any]:
    axes = leaf.get_metadata().get("torch_axes")
    value = np.asarray(leaf.get_value())
    return value if axes is None else value.transpose(axes)


def _from_torch(leaf: nnx.Variable[Any], value: np.ndarray[Any, Any]) -> Any:
    axes = leaf.get_metadata().get("torch_axes")
    back = value if axes is None else value.transpose(np.argsort(axes))
    return jnp.asarray(back, leaf.get_value().dtype)


def _torch_shape(leaf: nnx.Variable[Any]) -> tuple[int, ...]:
    axes, shape = leaf.get_metadata().get("torch_axes"), leaf.get_value().shape
    return tuple(shape) if axes is None else tuple(shape[axis] for axis in axes)


def _problems(
    wanted: Mapping[str, nnx.Variable[Any]],
    given: Mapping[str, str],
    held: Mapping[str, np.ndarray[Any, Any]],
    naming: Naming,
) -> list[str]:
    """One line for each tensor that is missing, misshapen or has no place."""
    strange = [key for path, key in given.items() if path not in wanted]
    lines: list[str] = []
    for path, leaf in wanted.items():
        key = naming.to_torch(path)
        if path not in given:
            near = difflib.get_close_matches(key, strange, n=1, cutoff=0.85)
            hint = f" (is it {near[0]}?)" if near else ""
            lines.append(f"not in the checkpoint: {key} {_torch_shape(leaf)}{hint}")
        elif held[given[path]].shape != _torch_shape(leaf):
            found = held[given[path]].shape
            lines.append(f"misshapen: {key} is {found}, the network has {_torch_shape(leaf)}")
    return lines + [f"not in the network: {key} {held[key].shape}" for key in strange]


def _mismatch(problems: list[str], total: int, place: str | None) -> WeightsMismatch:
    shown = [
        line
        for kind in ("not in the c", "misshapen", "not in the n", "of one place")
        for line in [line for line in problems if line.startswith(kind)][:SHOWN]
    ]
    more = f"\n    and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
    error = WeightsMismatch(
        f"{len(problems)} of {total} tensors do not match:\n    " + "\n    ".join(shown) + more,
        rule="every tensor has its place in the network, and every place its tensor",
        place=place,
        remedy="check the method and its sizes (--size key=value); nothing was loaded",
    )
    error.count = len(problems)
    return error


def _matches(key: str, globs: Mapping[str, str]) -> bool:
    return any(fnmatchcase(key, glob) for glob in globs)
