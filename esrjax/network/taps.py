"""The outputs of the parts of a network, by path."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array

Net = TypeVar("Net", bound=nnx.Module)
See = Callable[[str, Any], None]
HEAD = "head_"
SCOPE = "<{}>"  # marks the scopes of parts among those of jax and of networks


def taps(
    net: nnx.Module, x: Array, only: Collection[str] | None = None
) -> tuple[Array, dict[str, Any]]:
    """The output of `net` for `x`, and that of every part by its path (`block_1.c1`).

    A part that runs more than once shows its last output. only: the paths that are asked for.
    """
    seen: dict[str, Any] = {}
    y: Array = watched(net, seen.__setitem__, only=only)(x)  # pyright: ignore[reportCallIssue] # networks are callable
    return y, seen


def heads(parts: Mapping[str, Any]) -> dict[str, Array]:
    """Pictures of further scales by name: the outputs of the parts called `head_NAME`."""
    return {
        path.removeprefix(HEAD): output
        for path, output in parts.items()
        if path.startswith(HEAD) and "." not in path
    }


def watched(
    net: Net, see: See, given: See | None = None, only: Collection[str] | None = None
) -> Net:
    """A copy of `net` that calls `see(path, output)` when a part has run, innermost first.

    Before it runs, `given(path, inputs)` gets the tuple of what it is called with. Each part traces
    inside a named scope of its path, written as `SCOPE`. only: the paths of the parts that this is
    for; by default all.
    """
    copy = nnx.clone(net)
    for path, part in list(nnx.iter_modules(copy)):
        name = ".".join(map(str, path))
        if name and callable(part) and (only is None or name in only):
            _watch(part, name, see, given)
    return copy


def _watch(part: nnx.Module, path: str, see: See, given: See | None) -> None:
    kind: Any = type(part)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if given is not None:
            given(path, (*args, *kwargs.values()))
        with jax.named_scope(SCOPE.format(path)):
            output = kind.__call__(self, *args, **kwargs)
        see(path, output)
        return output

    watching = type(kind.__name__, (kind,), {"__call__": call})
    object.__setattr__(part, "__class__", watching)
