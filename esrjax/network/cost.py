"""What a network costs: parameters, multiply-adds, activations, convolutions.

`params`, `macs`, `activations` and `convs` follow the organisers' counters (fvcore for MACs, hooks
on Conv2d modules for activations and convolutions: NTIRE 2026 report, section 3); the `honest`
figures also hold what those miss. Element-wise work is free in both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from esrjax.errors import UserError
from esrjax.network import ops
from esrjax.network.taps import watched
from esrjax.network.work import Work, work

Side = int | tuple[int, int]  # of the LR picture, pixels; where they differ, (h, w)


class IdleGlob(UserError):
    """A glob of `uncounted` or `counted` matches no part of the network that works."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """params_honest: those that the output depends on. macs_honest: with what the counter misses.

    work: every counted piece, in the order of the network.
    """

    params: int
    params_honest: int
    macs: int
    macs_honest: int
    activations: int
    convs: int
    work: tuple[Work, ...]


class Declared(Protocol):
    """What a method says of its counts, as `esrjax.method.Method` does."""

    @property
    def uncounted(self) -> Mapping[str, str]: ...

    @property
    def counted(self) -> Mapping[str, str]: ...


def cost_of(method: Declared, net: nnx.Module, *, side: Side = 256) -> Cost:
    """The cost of a network of `method`, by what the method says of its counts."""
    return cost(net, side=side, uncounted=method.uncounted, counted=method.counted)


def cost(
    net: nnx.Module,
    *,
    side: Side = 256,
    uncounted: Mapping[str, str] | None = None,
    counted: Mapping[str, str] | None = None,
) -> Cost:
    """The cost of `net` on one LR picture; an abstract network will do.

    uncounted, counted: as in `esrjax.method.Method`; a glob of `counted` may match nothing, for
    a network of other sizes may lack that part.
    """
    trace, sizes = _trace(net, side)
    pieces, needed = work(trace)
    for glob in uncounted or {}:
        _require_match(glob, pieces)
    honest = [piece for piece in pieces if piece.needed]
    drawn_in = [piece for piece in pieces if piece.needed or _matches(piece, counted or {})]
    seen = [piece for piece in drawn_in if not _matches(piece, uncounted or {})]
    return Cost(
        params=sum(sizes),
        params_honest=sum(size for size, used in zip(sizes, needed, strict=False) if used),
        macs=sum(piece.official for piece in seen),
        macs_honest=sum(piece.macs for piece in honest),
        activations=sum(piece.activations for piece in pieces),
        convs=sum(piece.convs for piece in pieces),
        work=pieces,
    )


def departures(counted: Cost, reported: Mapping[str, float]) -> list[str]:
    """`params is 3, reported 4`, for every figure that was reported and is not the counted one."""
    return [
        f"{figure} is {getattr(counted, figure)}, reported {reported[figure]}"
        for figure in ("params", "macs", "activations", "convs")
        if figure in reported and reported[figure] != getattr(counted, figure)
    ]


def _trace(net: nnx.Module, side: Side) -> tuple[Any, list[int]]:
    """The trace of `net` under reference bodies; its first inputs, of these sizes, are weights."""
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    def forward(params: Any, rest: Any, picture: jax.Array) -> jax.Array:
        with ops.body("reference"):
            return watched(nnx.merge(graph, params, rest), lambda path, output: None)(picture)

    params, rest = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (params, rest)
    )
    dtype = next((leaf.dtype for leaf in jax.tree.leaves(params)), jnp.float32)
    size = (side, side) if isinstance(side, int) else side
    picture = jax.ShapeDtypeStruct((1, *size, 3), dtype)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    return jax.make_jaxpr(forward)(params, rest, picture).jaxpr, sizes


def _matches(piece: Work, globs: Mapping[str, str]) -> bool:
    return any(fnmatchcase(piece.path, glob) for glob in globs)


def _require_match(glob: str, pieces: tuple[Work, ...]) -> None:
    if not any(fnmatchcase(piece.path, glob) for piece in pieces):
        raise IdleGlob(
            f"the glob {glob!r} matches nothing",
            rule="every glob of Method.uncounted names parts that do counted work",
            place=", ".join(sorted({piece.path for piece in pieces})[:12]),
            remedy="correct the glob, or drop it",
        )
