"""A training gone through without numbers: shapes, what moves, what is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx

from esrjax import registry
from esrjax.errors import UserError
from esrjax.method import Form
from esrjax.training import batches, muon, origin
from esrjax.training import state as states
from esrjax.training.estimate import Estimate
from esrjax.training.files import find_weights
from esrjax.training.objective import Objective
from esrjax.training.origin import Held
from esrjax.training.outcome import named
from esrjax.training.recipe import Prune, Recipe, Run, Stage, Start
from esrjax.training.state import State
from esrjax.training.teacher import Teacher, teacher
from esrjax.training.work import adapters_of, optimiser_of

Graph = nnx.GraphDef[Any]


@dataclass(frozen=True, kw_only=True)
class Rehearsed:
    """What one run would be.

    leaves: trained weight -> its shape and the rule that moves it. frozen: weights that do not
    move. step: what one would cost. missing: files and sets that are not there.
    """

    run: Run
    form: Form
    sizes: Mapping[str, Any]
    leaves: Mapping[str, tuple[tuple[int, ...], str]]
    frozen: int
    step: Estimate
    missing: tuple[str, ...] = ()

    @property
    def trained(self) -> int:
        """How many weights move."""
        return sum(math.prod(shape) for shape, _ in self.leaves.values())


def rehearse(recipe: Recipe) -> tuple[Rehearsed, ...]:
    """Every run of the recipe; raises what could not work, and notes what is only not there."""
    recipe = _with_steps(recipe)
    held: dict[int, Held] = {}
    rehearsed: list[Rehearsed] = []
    for run in recipe.runs:
        if before := _alike(recipe, run, rehearsed):
            held[run.index] = held[before.run.index]
            rehearsed.append(replace(before, run=run))
            continue
        possible, missing = _with_files(run)
        held[run.index], taught = _begun(recipe, possible, held)
        missing += _missing_sets(recipe, run.stage)
        told = _told(recipe, possible, held[run.index], taught, missing)
        rehearsed.append(replace(told, run=run))
    return tuple(rehearsed)


def _alike(recipe: Recipe, run: Run, rehearsed: Sequence[Rehearsed]) -> Rehearsed | None:
    """An earlier turn of the stage that left the same network as it would begin with now."""
    turns = [each for each in rehearsed if each.run.stage.name == run.stage.name]
    if not turns:
        return None
    last, now = rehearsed[-1], (turns[0].form, recipe.sizes_at(run))
    same = (last.form, recipe.sizes_at(last.run)) == now == (now[0], recipe.sizes_at(turns[0].run))
    return turns[0] if same else None


def _with_steps(recipe: Recipe) -> Recipe:
    """Epochs taken for one step each where their set cannot be counted: shapes do not change."""
    stages = [s if s.steps else replace(s, steps=s.epochs, epochs=None) for s in recipe.stage]
    return replace(recipe, stage=tuple(stages))


def _with_files(run: Run) -> tuple[Run, list[str]]:
    """The run without the files that are not there, and their names."""
    stage, missing = run.stage, list[str]()
    start, taught = stage.origin, stage.teacher
    if isinstance(start, Start) and start.file and (problem := _unfound(start.file)):
        missing.append(f"start: {problem}")
        stage = replace(stage, start="new", fresh=(), prune=None)
    if taught and taught.weights and (problem := _unfound(taught.weights)):
        missing.append(f"teacher: {problem}")
        untaught = {term: w for term, w in stage.loss.items() if not term.startswith("teacher_")}
        stage = replace(stage, teacher=None, loss=untaught or {"l1": 1.0})
    if stage.prune is not None:
        stage = replace(stage, prune=Prune(keep="first"))  # the largest weights have no shape
    return replace(run, stage=stage), missing


def _unfound(file: str) -> str | None:
    return _problem(lambda: find_weights(file))


def _problem(act: Callable[[], object]) -> str | None:
    try:
        act()
    except UserError as error:
        return error.problem
    return None


def _missing_sets(recipe: Recipe, stage: Stage) -> list[str]:
    scale = registry.plain(recipe.method).scale
    names = [*stage.data.shares, *([stage.validate.set] if stage.validate else [])]
    problems = {name: _problem(lambda name=name: batches.find(name, scale)) for name in names}
    return [f"set {name}: {problem}" for name, problem in problems.items() if problem]


def _begun(recipe: Recipe, run: Run, held: Mapping[int, Held]) -> tuple[Held, Teacher | None]:
    """What the run would begin with, and its teacher if that is there; both without values."""
    nets = {index: each.net for index, each in held.items()}
    found: list[tuple[Held, Teacher | None]] = []

    def build(nets: dict[int, nnx.Module]) -> tuple[nnx.Module, Any]:
        def left(name: str | None) -> Held:
            index = named(recipe.runs, run.index, name).index
            return replace(held[index], net=nets[index])

        begun, taught = origin.begin(recipe, run, left), teacher(run.stage, left)
        found.append((begun, taught))
        return begun.net, taught and taught.state

    net, weights = nnx.eval_shape(build, nets)
    begun, taught = found[0]
    return replace(begun, net=net), taught and replace(taught, state=weights)


def _told(
    recipe: Recipe, run: Run, held: Held, taught: Teacher | None, missing: Sequence[str]
) -> Rehearsed:
    stage, method = run.stage, registry.plain(recipe.method)
    graph, state = _state(held, taught, stage)
    objective = Objective(graph=graph, stage=stage, data_range=method.data_range, teacher=taught)
    step = Estimate(net=held.net, objective=objective, state=state, scale=method.scale)
    step.require()
    return Rehearsed(
        run=run,
        form=held.form,
        sizes=held.sizes,
        leaves=_rules(state.params, stage.optimiser.name),
        frozen=_count(state.frozen),
        step=step,
        missing=tuple(missing),
    )


def _state(held: Held, taught: Teacher | None, stage: Stage) -> tuple[Graph, State]:
    """The graph and the state before the first step, without values."""
    network, weights = nnx.split(held.net)
    _, optimiser = optimiser_of(stage)
    graphs: list[Graph] = []

    def begin(weights: Any) -> State:
        adapters = adapters_of(held, taught, stage, 0)
        graph, state = states.begin(nnx.merge(network, weights), stage, optimiser, adapters)
        graphs.append(graph)
        return state

    state = jax.eval_shape(begin, weights)
    return graphs[0], state


def _rules(params: Any, optimiser: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Path of a trained weight -> its shape, and the rule that moves it."""
    rules = muon.kinds(params) if optimiser == "muadamw" else None
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    kinds = jax.tree.leaves(rules) if rules else [optimiser] * len(leaves)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".")
        .removeprefix("network.")
        .removesuffix(".value"): (tuple(leaf.shape), kind)
        for (path, leaf), kind in zip(leaves, kinds, strict=True)
    }


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
