"""What a method or an ensemble costs, by its name."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flax import nnx

from esrjax import registry
from esrjax.method import Member, Method
from esrjax.model import open_method, require_ensemble, require_side, sizes_of
from esrjax.network.cost import Cost, cost_of
from esrjax.network.work import Work
from esrjax.pictures.upscale import Size
from esrjax.pictures.upscale.border import larger
from esrjax.pictures.upscale.windows import passes
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
    found, files = registry.method(name), files or {}
    if isinstance(found, Method):
        require_side(name, found.min_side, (side, side))
        return cost_of(found, _network(name, found, files, sizes or {}), side=side)
    require_ensemble(name, found, files, sizes)
    members = found.members.items()
    return _sum([_member(m, how, side, files, sizes_of(m, sizes)) for m, how in members])


def _network(
    name: str, method: Method, files: Mapping[str, Path], sizes: Mapping[str, Any]
) -> nnx.Module:
    if name in files:
        return open_method(name, files[name], sizes).net
    return template(method, "deploy", sizes)


def _member(
    name: str, how: Member, side: int, files: Mapping[str, Path], sizes: Mapping[str, Any]
) -> Cost:
    """A member's cost as often as it runs; its parameters are the same in every pass."""
    method = registry.plain(name)
    require_side(name, method.min_side, (side, side))
    net = _network(name, method, files, sizes)
    runs = [
        _repeated(cost_of(method, net, side=size), name, times)
        for size, times in _passes(how, (side, side)).items()
    ]
    return replace(_sum(runs), params=runs[0].params, params_honest=runs[0].params_honest)


def _passes(how: Member, size: Size) -> Counter[Size]:
    """The sizes of what a member is run on, for LR of `size`, and how often."""
    found: Counter[Size] = Counter()
    for cut, times in (passes(size, how.windows) if how.windows else {size: 1}).items():
        grown = larger(cut, how.mirrored) if how.mirrored else cut
        found[grown] += times * (TURNS if how.self_ensemble else 1)
    return found


def _repeated(one: Cost, member: str, times: int) -> Cost:
    return replace(
        one,
        macs=one.macs * times,
        macs_honest=one.macs_honest * times,
        activations=one.activations * times,
        convs=one.convs * times,
        work=tuple(_piece(piece, member, times) for piece in one.work),
    )


def _piece(piece: Work, member: str, times: int) -> Work:
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
