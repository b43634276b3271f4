"""A frozen network that a student looks at: its picture, and the outputs of its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from esrjax import registry
from esrjax.errors import UserError
from esrjax.network.taps import taps
from esrjax.training.origin import Held, opened
from esrjax.training.recipe import Stage
from esrjax.training.recipe import Teacher as Said

Graph = nnx.GraphDef[Any]


class UnknownPart(UserError):
    """A path at which a network runs no part that gives features."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """The teacher of a stage. state: its weights. parts: paths whose outputs are asked for."""

    graph: Graph
    state: Any
    data_range: float
    scale: int
    parts: tuple[str, ...]

    @classmethod
    def of(cls, held: Held, said: Said) -> Teacher:
        """The network in deploy form, as it behaves outside of training."""
        method, net = registry.plain(held.method), held.deployed().net
        net.eval()
        graph, state = nnx.split(net)
        parts = tuple(said.taps.values())
        return cls(
            graph=graph,
            state=state,
            data_range=method.data_range,
            scale=method.scale,
            parts=parts,
        )

    def __call__(self, state: Any, lr: Array) -> tuple[Array, list[Array]]:
        """What it makes of `lr (n, h, w, 3)`, white at 1, and the features of its parts."""
        net = nnx.merge(self.graph, state)
        sr, features = look(net, lr * jnp.asarray(self.data_range, lr.dtype), self.parts)
        return lax.stop_gradient((sr / self.data_range, features))


def look(net: nnx.Module, x: Array, parts: Sequence[str]) -> tuple[Array, list[Array]]:
    """The output of `net`, and that of its `parts`; `block_6:1` is the second that one returns."""
    if not parts:
        return net(x), []  # pyright: ignore[reportCallIssue] # networks are callable
    names = {path.partition(":")[0] for path in parts}
    sr, seen = taps(net, x, names)
    if not names <= seen.keys():
        _, seen = taps(net, x)  # to say which there are
    return sr, [_part(path, seen) for path in parts]


def _part(path: str, seen: Mapping[str, Any]) -> Array:
    name, _, number = path.partition(":")
    output = seen.get(name)
    if isinstance(output, tuple) and int(number or 0) < len(output):
        return output[int(number or 0)]
    if output is None or isinstance(output, tuple):
        raise UnknownPart(
            f"no part {path!r} runs in the network",
            rule="a tap is the path of a part, PATH:N for the N-th of several outputs",
            place=", ".join(list(seen)[:16]),
            remedy="choose one of these",
        )
    return output


def teacher(stage: Stage, left: Callable[[str | None], Held]) -> Teacher | None:
    """The stage's teacher, if it has one. left: what an earlier stage has left."""
    said = stage.teacher
    if said is None:
        return None
    if said.stage is not None:
        return Teacher.of(left(said.stage), said)
    assert said.method is not None and said.weights is not None  # the schema asks for them
    return Teacher.of(opened(said.method, said.weights, said.sizes), said)
