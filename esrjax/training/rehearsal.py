"""Dry run of a recipe: shapes, optimizer labels and missing files, without array values."""

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
from esrjax.training.estimate import StepEstimate
from esrjax.training.files import find_checkpoint
from esrjax.training.objective import Objective
from esrjax.training.origin import LoadedModel
from esrjax.training.outcome import latest_run
from esrjax.training.recipe import InitFrom, Prune, Recipe, Stage, StageRun
from esrjax.training.state import TrainState
from esrjax.training.teacher import Teacher, load_teacher
from esrjax.training.work import make_adapters, make_stage_optimizer

GraphDef = nnx.GraphDef[Any]


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What a stage run would train, and at which cost.

    Attributes:
        run: The stage run.
        form: Form of the network, "train" or "deploy".
        hparams: Hyperparameters of the network, beyond the method's defaults.
        trainable_params: Path of each trained parameter -> (shape, optimizer label).
        num_frozen: Number of scalar parameters that are not trained.
        step_estimate: Cost of one step.
        missing: Messages about files and datasets that do not exist.
    """

    run: StageRun
    form: Form
    hparams: Mapping[str, Any]
    trainable_params: Mapping[str, tuple[tuple[int, ...], str]]
    num_frozen: int
    step_estimate: StepEstimate
    missing: tuple[str, ...] = ()

    @property
    def num_trained(self) -> int:
        """Number of trained scalar parameters."""
        return sum(math.prod(shape) for shape, _ in self.trainable_params.values())


def dry_run(recipe: Recipe) -> tuple[StagePlan, ...]:
    """Trace all runs of a recipe abstractly, without computing anything.

    Missing checkpoints and datasets are reported in the plans; they do not stop the dry run.

    Args:
        recipe: The recipe.

    Returns:
        A plan for each run, in order.

    Raises:
        UserError: A stage would fail: shapes, globs, taps or schedules do not match.
    """
    recipe = _epochs_as_steps(recipe)
    models: dict[int, LoadedModel] = {}
    plans: list[StagePlan] = []
    for run in recipe.runs:
        if equal_plan := _find_equal_plan(recipe, run, plans):
            models[run.index] = models[equal_plan.run.index]
            plans.append(replace(equal_plan, run=run))
            continue
        feasible_run, missing = _without_missing_files(run)
        models[run.index], teacher = _init_abstract(recipe, feasible_run, models)
        missing += _missing_datasets(recipe, run.stage)
        plan = _make_plan(recipe, feasible_run, models[run.index], teacher, missing)
        plans.append(replace(plan, run=run))
    return tuple(plans)


def _find_equal_plan(recipe: Recipe, run: StageRun, plans: Sequence[StagePlan]) -> StagePlan | None:
    """Return the first repetition's plan if this repetition starts from an equal network.

    Repeated stages are then traced only once.
    """
    repetitions = [plan for plan in plans if plan.run.stage.name == run.stage.name]
    if not repetitions:
        return None
    # A run starts from the run before it (`latest`) or a fixed source. Where that run, this one and
    # the first repetition agree in form and hparams, nothing that is planned differs.
    latest, network = plans[-1], (repetitions[0].form, recipe.hparams_at(run))
    is_same = (
        (latest.form, recipe.hparams_at(latest.run))
        == network
        == (network[0], recipe.hparams_at(repetitions[0].run))
    )
    return repetitions[0] if is_same else None


def _epochs_as_steps(recipe: Recipe) -> Recipe:
    """Return the recipe with an epoch counted as one step: shapes do not depend on the length."""
    stages = [s if s.steps else replace(s, steps=s.epochs, epochs=None) for s in recipe.stage]
    return replace(recipe, stage=tuple(stages))


def _without_missing_files(run: StageRun) -> tuple[StageRun, list[str]]:
    """Return the run without the checkpoints that do not exist, and messages about them."""
    stage, missing = run.stage, list[str]()
    init, teacher = stage.init_source, stage.teacher
    if (
        isinstance(init, InitFrom)
        and init.checkpoint
        and (problem := _checkpoint_problem(init.checkpoint))
    ):
        missing.append(f"init_from: {problem}")
        stage = replace(stage, init_from="scratch", reinit=(), prune=None)
    if teacher and teacher.checkpoint and (problem := _checkpoint_problem(teacher.checkpoint)):
        missing.append(f"teacher: {problem}")
        image_terms = {term: w for term, w in stage.loss.items() if not term.startswith("teacher_")}
        stage = replace(stage, teacher=None, loss=image_terms or {"l1": 1.0})
    if stage.prune is not None:
        # The criterion "l1" needs values, which a dry run lacks; the shapes are the same.
        stage = replace(stage, prune=Prune(criterion="first"))
    return replace(run, stage=stage), missing


def _checkpoint_problem(file: str) -> str | None:
    return _problem_of(lambda: find_checkpoint(file))


def _problem_of(fn: Callable[[], object]) -> str | None:
    try:
        fn()
    except UserError as error:
        return error.problem
    return None


def _missing_datasets(recipe: Recipe, stage: Stage) -> list[str]:
    scale = registry.get_method(recipe.method).scale
    names = [*stage.data.dataset_weights, *([stage.validation.dataset] if stage.validation else [])]
    problems = {
        name: _problem_of(lambda name=name: batches.find_pairs(name, scale)) for name in names
    }
    return [f"dataset {name}: {problem}" for name, problem in problems.items() if problem]


def _init_abstract(
    recipe: Recipe, run: StageRun, models: Mapping[int, LoadedModel]
) -> tuple[LoadedModel, Teacher | None]:
    """Return the abstract initial model of a run, and its teacher."""
    nets = {index: model.net for index, model in models.items()}
    traced: list[tuple[LoadedModel, Teacher | None]] = []

    def build(nets: dict[int, nnx.Module]) -> tuple[nnx.Module, Any]:
        def load_stage(name: str | None) -> LoadedModel:
            index = latest_run(recipe.runs, run.index, name).index
            return replace(models[index], net=nets[index])

        model = origin.init_stage_model(recipe, run, load_stage)
        teacher = load_teacher(run.stage, load_stage)
        traced.append((model, teacher))  # eval_shape returns arrays only, these are their metadata
        return model.net, teacher and teacher.state

    net, teacher_state = nnx.eval_shape(build, nets)
    model, teacher = traced[0]
    return replace(model, net=net), teacher and replace(teacher, state=teacher_state)


def _make_plan(
    recipe: Recipe,
    run: StageRun,
    model: LoadedModel,
    teacher: Teacher | None,
    missing: Sequence[str],
) -> StagePlan:
    stage, method = run.stage, registry.get_method(recipe.method)
    graphdef, state = _abstract_state(model, teacher, stage)
    objective = Objective(
        graphdef=graphdef, stage=stage, data_range=method.data_range, teacher=teacher
    )
    step_estimate = StepEstimate(
        net=model.net, objective=objective, state=state, scale=method.scale
    )
    step_estimate.check_loss()
    return StagePlan(
        run=run,
        form=model.form,
        hparams=model.hparams,
        trainable_params=_labelled_shapes(state.params, stage.optimizer.name),
        num_frozen=_num_params(state.frozen),
        step_estimate=step_estimate,
        missing=tuple(missing),
    )


def _abstract_state(
    model: LoadedModel, teacher: Teacher | None, stage: Stage
) -> tuple[GraphDef, TrainState]:
    """Return the graph definition and the abstract initial training state."""
    net_graphdef, weights = nnx.split(model.net)
    _, optimizer = make_stage_optimizer(stage)
    graphdefs: list[GraphDef] = []

    def init(weights: Any) -> TrainState:
        adapters = make_adapters(model, teacher, stage, 0)  # shapes do not depend on the seed
        graphdef, state = states.init_state(
            nnx.merge(net_graphdef, weights), stage, optimizer, adapters
        )
        graphdefs.append(graphdef)
        return state

    state = jax.eval_shape(init, weights)
    return graphdefs[0], state


def _labelled_shapes(params: Any, optimizer: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return path -> (shape, optimizer label) of each trained parameter."""
    label_tree = muon.param_labels(params) if optimizer == "muadamw" else None
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    labels = jax.tree.leaves(label_tree) if label_tree else [optimizer] * len(leaves)
    return {
        jax.tree_util.keystr(path, simple=True, separator=".")
        .removeprefix("network.")
        .removesuffix(".value"): (tuple(leaf.shape), label)
        for (path, leaf), label in zip(leaves, labels, strict=True)
    }


def _num_params(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
