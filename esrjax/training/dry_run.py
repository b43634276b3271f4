"""Dry run of a recipe: shapes, optimizer labels, cost of a step and missing files, no values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from esrjax import registry
from esrjax.data.datasets import list_pairs
from esrjax.errors import UserError
from esrjax.method import Form
from esrjax.nn.cost import cost
from esrjax.training import optim
from esrjax.training.init_from import LoadedModel, find_checkpoint
from esrjax.training.recipe import InitFrom, Prune, Recipe, Stage, StageRun
from esrjax.training.stage_trainer import StageSetup
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
        jax.eval_shape(self._loss, self.state.params, *self._loss_args)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of a step; the backward pass counts as two forward passes."""
        h, w = self._largest_patch
        forward = cost(self.net, image_size=round(math.sqrt(h * w)) // self.scale).macs_full
        return 3 * forward * self.objective.stage.data.batch_size

    @cached_property
    def memory_mib(self) -> Mapping[str, float]:
        """MiB of weights, gradients and optimizer, and activations saved for the backward pass.

        The compiler may save fewer activations, and needs temporary buffers in addition.
        """
        args = self._loss_args
        state, teacher_state, *_ = args
        residuals = jax.eval_shape(self._vjp_residuals, state.params, *args)
        return {
            "weights": _mib((state.params, state.frozen, state.ema, state.best, teacher_state)),
            "gradients and optimizer": _mib((state.params, state.opt_state)),
            "saved activations": _mib(residuals),
        }

    def _loss(self, params: Any, *args: Any) -> Any:
        return self.objective(params, *args)[0]

    def _vjp_residuals(self, params: Any, *args: Any) -> Any:
        return jax.vjp(lambda params: self._loss(params, *args), params)[1]

    @property
    def _loss_args(self) -> tuple[Any, ...]:
        """State, teacher state, and abstract LR and HR images of one micro-batch."""
        stage, teacher = self.objective.stage, self.objective.teacher
        (h, w), s = self._largest_patch, self.scale
        n = stage.data.batch_size // stage.grad_accum_steps
        lr, hr = (
            jax.ShapeDtypeStruct((n, *size, 3), jnp.uint8) for size in ((h // s, w // s), (h, w))
        )
        return self.state, teacher and teacher.state, lr, hr

    @property
    def _largest_patch(self) -> tuple[int, int]:
        """Size of the largest HR patch, (h, w) in pixels."""
        return max(self.objective.stage.data.all_patch_sizes, key=math.prod)


def _mib(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves) / 2**20


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
    # An epoch counts as one step: shapes do not depend on the length.
    stages = [s if s.steps else replace(s, steps=s.epochs, epochs=None) for s in recipe.stage]
    recipe = replace(recipe, stage=tuple(stages))
    models: dict[int, LoadedModel] = {}
    plans: list[StagePlan] = []
    for run in recipe.runs:
        plan = _find_equal_plan(recipe, run, plans)
        if plan is not None:
            models[run.index] = models[plan.run.index]
        else:
            feasible_run, missing = _without_missing_files(run)
            setup = _init_abstract(recipe, feasible_run, models)
            models[run.index] = setup.model
            plan = _make_plan(run, setup, [*missing, *_missing_datasets(recipe, run.stage)])
        plans.append(replace(plan, run=run))
    return tuple(plans)


def _find_equal_plan(recipe: Recipe, run: StageRun, plans: Sequence[StagePlan]) -> StagePlan | None:
    """Return the first repetition's plan if this repetition starts from an equal network.

    Repeated stages are then traced only once.
    """
    first = next((plan for plan in plans if plan.run.stage.name == run.stage.name), None)
    if first is None:
        return None
    # A run starts from the run before it (the latest) or a fixed source. Where that run, this one
    # and the first repetition agree in form and hparams, nothing that is planned differs.
    networks = [(plan.form, recipe.hparams_at(plan.run)) for plan in (first, plans[-1])]
    is_same = all(network == (first.form, recipe.hparams_at(run)) for network in networks)
    return first if is_same else None


def _without_missing_files(run: StageRun) -> tuple[StageRun, list[str]]:
    """Return the run without the checkpoints that do not exist, and messages about them."""
    stage, missing = run.stage, list[str]()
    init, teacher = stage.init_source, stage.teacher
    init_file = init.checkpoint if isinstance(init, InitFrom) else None
    teacher_file = teacher and teacher.checkpoint
    if init_file and (problem := _problem_of(find_checkpoint, init_file)):
        missing.append(f"init_from: {problem}")
        stage = replace(stage, init_from="scratch", reinit=(), prune=None)
    if teacher_file and (problem := _problem_of(find_checkpoint, teacher_file)):
        missing.append(f"teacher: {problem}")
        image_terms = {term: w for term, w in stage.loss.items() if not term.startswith("teacher_")}
        stage = replace(stage, teacher=None, loss=image_terms or {"l1": 1.0})
    if stage.prune is not None:
        # The criterion "l1" needs values, which a dry run lacks; the shapes are the same.
        stage = replace(stage, prune=Prune(criterion="first"))
    return replace(run, stage=stage), missing


def _missing_datasets(recipe: Recipe, stage: Stage) -> list[str]:
    scale = registry.get_method(recipe.method).scale
    names = [*stage.data.dataset_weights, *([stage.validation.dataset] if stage.validation else [])]
    problems = {name: _problem_of(list_pairs, name, scale) for name in names}
    return [f"dataset {name}: {problem}" for name, problem in problems.items() if problem]


def _problem_of(fn: Callable[..., object], *args: Any) -> str | None:
    try:
        fn(*args)
    except UserError as error:
        return error.problem
    return None


def _init_abstract(recipe: Recipe, run: StageRun, models: Mapping[int, LoadedModel]) -> StageSetup:
    """Return what a run starts from, with abstract arrays."""
    traced: list[StageSetup] = []

    def build(nets: dict[int, nnx.Module]) -> Any:
        def load_stage(name: str | None) -> LoadedModel:
            index = recipe.latest_run(run.index, name).index
            return replace(models[index], net=nets[index])

        setup = StageSetup.create(recipe, run, load_stage)
        traced.append(setup)  # eval_shape returns arrays only, this is their metadata
        teacher = setup.objective.teacher
        return setup.model.net, setup.state, teacher and teacher.state

    nets = {index: model.net for index, model in models.items()}
    net, state, teacher_state = nnx.eval_shape(build, nets)
    setup, teacher = traced[0], traced[0].objective.teacher
    objective = replace(setup.objective, teacher=teacher and replace(teacher, state=teacher_state))
    return replace(setup, model=replace(setup.model, net=net), objective=objective, state=state)


def _make_plan(run: StageRun, setup: StageSetup, missing: Sequence[str]) -> StagePlan:
    model, state = setup.model, setup.state
    scale = registry.get_method(model.method).scale
    step_estimate = StepEstimate(net=model.net, objective=setup.objective, state=state, scale=scale)
    step_estimate.check_loss()
    return StagePlan(
        run=run,
        form=model.form,
        hparams=model.hparams,
        trainable_params=_labelled_shapes(state.params, run.stage.optimizer.name),
        num_frozen=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.frozen)),
        step_estimate=step_estimate,
        missing=tuple(missing),
    )


def _labelled_shapes(params: Any, optimizer: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return path -> (shape, optimizer label) of each trained parameter."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    labels = [optimizer] * len(leaves)
    if optimizer == "muadamw":
        labels = jax.tree.leaves(optim.param_labels(params))
    return {
        optim.param_path(path).removeprefix("network."): (tuple(leaf.shape), label)
        for (path, leaf), label in zip(leaves, labels, strict=True)
    }
