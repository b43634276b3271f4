"""Estimated cost of a training step, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax import registry
from esrjax.errors import UserError
from esrjax.method import Form
from esrjax.nn.cost import cost
from esrjax.training import init_from, loader, optim, train_state
from esrjax.training.checkpoint import latest_run
from esrjax.training.init_from import LoadedModel, find_checkpoint
from esrjax.training.recipe import InitFrom, Prune, Recipe, Stage, StageRun
from esrjax.training.stage_trainer import make_adapters, make_stage_optimizer
from esrjax.training.teacher import Teacher, load_teacher
from esrjax.training.train_state import Objective, TrainState


@dataclass(frozen=True, kw_only=True, eq=False)
class StepEstimate:
    """A training step of a stage, evaluated abstractly: arrays have shapes but no values.

    Attributes:
        net: The network.
        objective: The loss.
        state: The abstract training state.
        scale: Upscaling factor.
    """

    net: nnx.Module
    objective: Objective
    state: TrainState
    scale: int

    def check_loss(self) -> None:
        """Trace the loss, so that it raises what it would raise in the first step."""
        teacher_state = self._teacher and self._teacher.state
        jax.eval_shape(
            self._loss, self.state.params, self._frozen_and_rest, teacher_state, *self._micro_batch
        )

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of a step; the backward pass counts as two forward passes."""
        h, w = self._largest_patch
        forward = cost(self.net, image_size=round(math.sqrt(h * w)) // self.scale).macs_full
        return 3 * forward * self._stage.data.batch_size

    @cached_property
    def memory_mib(self) -> Mapping[str, float]:
        """MiB of weights, gradients and optimizer, and activations saved for the backward pass.

        The compiler may save fewer activations, and needs temporary buffers in addition.
        """
        state, teacher_state = self.state, self._teacher and self._teacher.state
        residuals = jax.eval_shape(
            self._vjp_residuals,
            state.params,
            self._frozen_and_rest,
            teacher_state,
            *self._micro_batch,
        )
        return {
            "weights": _mib((state.params, state.frozen, state.ema, state.best, teacher_state)),
            "gradients and optimizer": _mib((state.params, state.opt_state)),
            "saved activations": _mib(residuals),
        }

    def _loss(
        self, params: Any, frozen_and_rest: Any, teacher_state: Any, lr: Array, hr: Array
    ) -> Any:
        step = jnp.zeros((), jnp.int32)
        return self.objective(params, frozen_and_rest, teacher_state, step, lr, hr)[0]

    def _vjp_residuals(self, params: Any, *args: Any) -> Any:
        return jax.vjp(lambda params: self._loss(params, *args), params)[1]

    @property
    def _stage(self) -> Stage:
        return self.objective.stage

    @property
    def _teacher(self) -> Teacher | None:
        return self.objective.teacher

    @property
    def _frozen_and_rest(self) -> tuple[Any, Any]:
        return self.state.frozen, self.state.rest

    @property
    def _largest_patch(self) -> tuple[int, int]:
        """Size of the largest HR patch, (h, w) in pixels."""
        return max(self._stage.data.all_patch_sizes, key=math.prod)

    @property
    def _micro_batch(self) -> list[jax.ShapeDtypeStruct]:
        """Abstract LR and HR images of one micro-batch."""
        (h, w), s = self._largest_patch, self.scale
        n = self._stage.data.batch_size // self._stage.grad_accum_steps
        sizes = (h // s, w // s), (h, w)
        return [jax.ShapeDtypeStruct((n, *size, 3), jnp.uint8) for size in sizes]


def _mib(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) / 2**20


# --------------------------------------------------------------------------------------------------
# Dry run of a recipe: shapes, optimizer labels and missing files, without array values.
# --------------------------------------------------------------------------------------------------


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
        name: _problem_of(lambda name=name: loader.find_pairs(name, scale)) for name in names
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

        model = init_from.init_stage_model(recipe, run, load_stage)
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
        graphdef, state = train_state.init_state(
            nnx.merge(net_graphdef, weights), stage, optimizer, adapters
        )
        graphdefs.append(graphdef)
        return state

    state = jax.eval_shape(init, weights)
    return graphdefs[0], state


def _labelled_shapes(params: Any, optimizer: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return path -> (shape, optimizer label) of each trained parameter."""
    label_tree = optim.param_labels(params) if optimizer == "muadamw" else None
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
