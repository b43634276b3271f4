"""What a method or an ensemble costs, by its name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from esrjax import registry
from esrjax.method import Ensemble, Method
from esrjax.model import open_method, require_ensemble, require_side
from esrjax.network.cost import Cost, cost_of
from esrjax.network.work import Work
from esrjax.recognition import template

TURNS = 8  # flips and quarter turns of a self-ensemble


def costs(
    name: str,
    *,
    side: int = 256,
    files: Mapping[str, Path] | None = None,
    sizes: Mapping[str, Any] | None = None,
) -> Cost:
    """The cost on one LR picture of `side` x `side`, of an ensemble that of all its passes.

    files: checkpoints by method; a method without one is counted as it is built of `sizes`.
    """
    found = registry.method(name)
    if isinstance(found, Method):
        return _method(name, found, side, files or {}, sizes or {})
    require_ensemble(name, found, files or {}, sizes)
    return _sum([_passes(member, found, side, files or {}) for member in found.members])


def _method(
    name: str, method: Method, side: int, files: Mapping[str, Path], sizes: Mapping[str, Any]
) -> Cost:
    require_side(name, method, (side, side))
    if name in files:
        net = open_method(name, files[name], sizes).net
    else:
        net = template(method, "deploy", sizes)
    return cost_of(method, net, side=side)


def _passes(member: str, ensemble: Ensemble, side: int, files: Mapping[str, Path]) -> Cost:
    """A member's cost as often as it runs; its parameters are the same in every pass."""
    times = TURNS if ensemble.members[member].self_ensemble else 1
    one = _method(member, registry.plain(member), side, files, {})
    return replace(
        one,
        macs=one.macs * times,
        macs_honest=one.macs_honest * times,
        activations=one.activations * times,
        convs=one.convs * times,
        work=tuple(_repeated(piece, member, times) for piece in one.work),
    )


def _repeated(piece: Work, member: str, times: int) -> Work:
    return replace(
        piece,
        path=f"{member}.{piece.path}" if piece.path else member,
        macs=piece.macs * times,
        official=piece.official * times,
        activations=piece.activations * times,
        convs=piece.convs * times,
    )


def _sum(parts: list[Cost]) -> Cost:
    return Cost(
        params=sum(part.params for part in parts),
        params_honest=sum(part.params_honest for part in parts),
        macs=sum(part.macs for part in parts),
        macs_honest=sum(part.macs_honest for part in parts),
        activations=sum(part.activations for part in parts),
        convs=sum(part.convs for part in parts),
        work=tuple(piece for part in parts for piece in part.work),
    )
