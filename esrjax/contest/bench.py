"""How long methods take side by side, at several sizes, by several engines."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.contest import clock
from esrjax.contest.compilations import counted
from esrjax.contest.lanes import Engine, Lane, LeftOut, Ready, Start, Variants, jax_engine, lanes
from esrjax.contest.roofline import Ceilings, Demand, Probe, demand
from esrjax.contest.turns import Turns, interval, turns
from esrjax.method import Method
from esrjax.model import require_side
from esrjax.network import ops
from esrjax.network.compilation import flags
from esrjax.network.reparam import deploy
from esrjax.network.work import UncountedWork

Row = dict[str, Any]
Shape = tuple[int, int]
Peers = Mapping[str, Mapping[str, Start]]  # by method and engine

# The engines that the others of a method are compared with, by what rows call the ratio.
BASES = {"ratio": "pytorch", "compiled_ratio": "pytorch-compiled"}


@dataclass(frozen=True, kw_only=True)
class Race:
    """All lanes at one size. compilations: programs that XLA compiled to ready a lane."""

    shape: Shape
    ready: Mapping[Lane, Ready]
    compilations: Mapping[Lane, int]
    taken: Turns[Lane]


def bench(
    methods: Mapping[str, Method],
    shapes: Sequence[Shape],
    sizes: Mapping[str, Any],
    seconds: float,
    engines: Mapping[str, Engine] | None = None,
    *,
    variants: Variants | None = None,
    peers: Peers | None = None,
) -> dict[str, Any]:
    """`{"device", "machine", "ceilings", "rows", "notes"}`, weights untrained.

    A row for every size, method, engine, body and precision. engines: by the name that rows give
    them; by default JAX alone. notes: what was left out, and why.
    """
    for name, method in methods.items():
        for shape in shapes:
            require_side(name, method.min_side, shape)
    engines, variants = engines or jax_engine(), variants or Variants()
    nets = {name: _deployed(method, sizes) for name, method in methods.items()}
    starts: dict[Lane, Start] = {}
    for name, net in nets.items():
        starts |= lanes(name, methods[name], net, engines, variants)
        theirs = (peers or {}).get(name, {})
        starts |= {Lane(method=name, engine=engine): start for engine, start in theirs.items()}
    notes: list[str] = []
    ceilings, races = _measured(starts, shapes, seconds, notes)
    rows = [row for race in races for row in _rows(race, methods, nets, ceilings, notes)]
    machine = clock.machine() | {"body": ",".join(variants.bodies)}
    return {
        "device": machine["device"],
        "machine": machine,
        "ceilings": {precision: vars(each) for precision, each in ceilings.items()},
        "rows": rows,
        "notes": list(dict.fromkeys(notes)),
    }


def _deployed(method: Method, sizes: Mapping[str, Any]) -> nnx.Module:
    """As it is once trained: chance and whatever else belongs to training is off."""
    net = deploy(method.build(**sizes))
    net.eval()
    return net


def _measured(
    starts: Mapping[Lane, Start], shapes: Sequence[Shape], seconds: float, notes: list[str]
) -> tuple[dict[str, Ceilings], list[Race]]:
    """The ceilings are measured before the networks and after them."""
    flags()  # compiles, once in a process
    precisions = dict.fromkeys(lane.precision for lane in starts)
    probes = {precision: Probe(precision) for precision in precisions}
    for probe in probes.values():
        probe.measure(seconds)
    races = [_race(starts, shape, seconds, notes) for shape in shapes]
    for probe in probes.values():
        probe.measure(seconds)
    return {precision: probe.ceilings() for precision, probe in probes.items()}, races


def _race(starts: Mapping[Lane, Start], shape: Shape, seconds: float, notes: list[str]) -> Race:
    picture = np.random.default_rng(0).random((1, *shape, 3))
    ready: dict[Lane, Ready] = {}
    compilations: dict[Lane, int] = {}
    for lane, start in starts.items():
        with counted() as compiled, ops.body(lane.body) if lane.body else nullcontext():
            try:
                ready[lane] = start(picture.astype(jnp.dtype(lane.precision)))
            except LeftOut as why:
                notes.append(f"{lane.method}: no {lane.engine}, {why}")
        compilations[lane] = len(compiled)
    calls = {lane: each.call for lane, each in ready.items()}
    several = len({lane.engine for lane in ready}) > 1
    taken = turns(calls, budget_s=seconds, settled=several)
    return Race(shape=shape, ready=ready, compilations=compilations, taken=taken)


def _rows(
    race: Race,
    methods: Mapping[str, Method],
    nets: Mapping[str, nnx.Module],
    ceilings: Mapping[str, Ceilings],
    notes: list[str],
) -> list[Row]:
    demands = {name: _demand(name, methods[name], net, race, notes) for name, net in nets.items()}
    return [
        _timed(race, lane)
        | _compared(race, lane)
        | _roofed(race, lane, demands[lane.method], ceilings[lane.precision])
        for lane in race.ready
    ]


def _demand(
    name: str, method: Method, net: nnx.Module, race: Race, notes: list[str]
) -> Demand | None:
    try:
        return demand(method, net, race.shape)
    except UncountedWork as error:
        notes.append(f"{name}: no roofline, {error.problem}")
        return None


def _timed(race: Race, lane: Lane) -> Row:
    samples, ready = race.taken.samples(lane), race.ready[lane]
    low, high = interval(samples)
    return {
        "method": lane.method,
        "size": f"{race.shape[0]}x{race.shape[1]}",
        "engine": lane.engine,
        "body": lane.body,
        "precision": lane.precision,
        "median_ms": float(np.median(samples)),
        "low_ms": low,
        "high_ms": high,
        "first_ms": race.taken.first[lane],
        "samples_ms": samples,
        "compile_s": ready.compile_s,
        "compilations": race.compilations[lane],
        "peak_mib": ready.mib,
    }


def _compared(race: Race, lane: Lane) -> Row:
    """The method's time over that of its peers: the median of rounds, and its interval."""
    return {
        key: value
        for name, engine in BASES.items()
        for key, value in _ratio(race, lane, name, Lane(method=lane.method, engine=engine)).items()
    }


def _ratio(race: Race, lane: Lane, name: str, base: Lane) -> Row:
    if lane == base or base not in race.ready:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    ratios = race.taken.ratios(lane, base)
    low, high = interval(ratios)
    return {name: float(np.median(ratios)), f"{name}_low": low, f"{name}_high": high}


def _roofed(race: Race, lane: Lane, asked: Demand | None, ceilings: Ceilings) -> Row:
    if asked is None:
        return dict.fromkeys(("macs", "bytes", "floor_ms", "bound", "roofline"))
    moved = asked.elements * jnp.dtype(lane.precision).itemsize
    floor_ms, bound = ceilings.floor(asked.macs, moved)
    return {
        "macs": asked.macs,
        "bytes": moved,
        "floor_ms": floor_ms,
        "bound": bound,
        "roofline": floor_ms / float(np.median(race.taken.samples(lane))),
    }
