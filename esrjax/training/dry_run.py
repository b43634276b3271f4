"""Dry run of a recipe: shapes, optimizer labels, cost of a step and missing files, no values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from esrjax import registry
from esrjax.data.datasets import list_pairs
from esrjax.errors import NotFound, RecipeError, UserError, error_summary
from esrjax.evaluation.metrics import get_spec
from esrjax.loading import stored_hparams
from esrjax.nn import checkpoint_io
from esrjax.nn.compilation import single_platform
from esrjax.nn.cost import cost, peak_bytes
from esrjax.nn.ops import platform
from esrjax.nn.reparam import deploy
from esrjax.training import optim
from esrjax.training.distributed import DataParallel
from esrjax.training.init_from import LoadedModel, find_checkpoint
from esrjax.training.loader import check_patch_sizes, usable_pairs
from esrjax.training.optim import make_schedule
from esrjax.training.recipe import (
    InitFrom,
    Prune,
    Recipe,
    StageRun,
    StageWeights,
    TeacherConfig,
)
from esrjax.training.stage_trainer import StageSetup, data_parallel_of
from esrjax.training.train_state import loss_and_grads


@dataclass(frozen=True, kw_only=True, eq=False)
class StepEstimate:
    """A training step of a stage, evaluated abstractly: arrays have shapes but no values.

    Attributes:
        setup: What the stage starts from, with abstract arrays.
        data_parallel: The devices of the step.
    """

    setup: StageSetup
    data_parallel: DataParallel

    def check_loss(self) -> None:
        """Trace the loss, so that it raises what it would raise in the first step."""
        jax.eval_shape(self._loss, self.setup.state.params, *self._loss_args())

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of a step; the backward pass counts as two forward passes.

        The teacher has no backward pass. Adapters and frozen layers are not told apart.
        """
        objective, net = self.setup.objective, self.setup.model.net
        if objective.stage.train_fused:
            net = nnx.eval_shape(deploy, net)
        forward = 3 * self._forward_macs(net)
        if (teacher := objective.teacher) is not None:
            forward += self._forward_macs(nnx.merge(teacher.graphdef, teacher.state))
        return forward * objective.stage.data.batch_size

    def _forward_macs(self, net: nnx.Module) -> int:
        side = round(math.sqrt(math.prod(self._largest_patch))) // self._scale
        return cost(net, image_size=side).macs_full

    @cached_property
    def memory_mib(self) -> Mapping[str, float]:
        """Estimated MiB of a step with the largest patch, on each device; nothing is compiled.

        "weights" are parameters, trained or not, moving average, best weights and teacher;
        "activations" are what the loss and its gradient take at most, gradients included.
        """
        state, teacher_state, lr, hr = self._loss_args(self.data_parallel.mesh.size)
        with single_platform(platform()):
            jaxpr = jax.make_jaxpr(partial(loss_and_grads, self.setup.objective))(
                state, teacher_state, lr, hr
            )
        device_bytes = self.data_parallel.device_bytes
        weights = (state.params, state.frozen, state.ema, state.best, state.rest)
        whole = (state.params, state.frozen) if self.data_parallel.parallel == "fsdp" else ()
        nbytes = {
            "weights": device_bytes(weights) + _nbytes((teacher_state, whole)),
            "optimizer": device_bytes(state.opt_state),
            "images": _nbytes((lr, hr)),
            "activations": peak_bytes(jaxpr.jaxpr),
        }
        return {name: number / 2**20 for name, number in nbytes.items()}

    def _loss(self, params: Any, *args: Any) -> Any:
        return self.setup.objective(params, *args)[0]

    def _loss_args(self, num_devices: int = 1) -> tuple[Any, ...]:
        """State, teacher state, and abstract LR and HR images of a step on one of some devices."""
        objective, (h, w), s = self.setup.objective, self._largest_patch, self._scale
        n = objective.stage.data.batch_size // num_devices
        lr, hr = (
            jax.ShapeDtypeStruct((n, *size, 3), jnp.uint8) for size in ((h // s, w // s), (h, w))
        )
        return self.setup.state, objective.teacher and objective.teacher.state, lr, hr

    @property
    def _largest_patch(self) -> tuple[int, int]:
        """Size of the largest HR patch, (h, w) in pixels."""
        return max(self.setup.objective.stage.data.all_patch_sizes, key=math.prod)

    @property
    def _scale(self) -> int:
        model = self.setup.model
        return registry.get_method(model.method).scale_of(model.hparams)


def _nbytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What a stage run would train, and at which cost.

    Attributes:
        run: The stage run.
        step_estimate: Cost of one step.
        missing: Messages about files and datasets that do not exist.
    """

    run: StageRun
    step_estimate: StepEstimate
    missing: tuple[str, ...]

    @property
    def setup(self) -> StageSetup:
        """What the run starts from, with abstract arrays."""
        return self.step_estimate.setup

    @property
    def trainable_params(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Path of each trained parameter -> (shape, optimizer label)."""
        params, optimizer = self.setup.state.params, self.run.stage.optimizer.name
        leaves, _ = jax.tree_util.tree_flatten_with_path(params)
        labels = jax.tree.leaves(optim.optimizer_labels(optimizer, params))
        return {
            optim.param_path(path).removeprefix("network."): (tuple(leaf.shape), label)
            for (path, leaf), label in zip(leaves, labels, strict=True)
        }

    @property
    def num_trained(self) -> int:
        """Number of trained scalar parameters."""
        return sum(math.prod(shape) for shape, _ in self.trainable_params.values())

    @property
    def num_frozen(self) -> int:
        """Number of scalar parameters that are not trained."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.setup.state.frozen))


def dry_run(recipe: Recipe) -> tuple[StagePlan, ...]:
    """Trace all runs of a recipe abstractly, without computing anything.

    Missing checkpoints and datasets are reported in the plans; they do not stop the dry run.

    Args:
        recipe: The recipe.

    Returns:
        A plan for each run, in order.

    Raises:
        UserError: A stage would fail: `check_stages` refuses it, or shapes, globs, taps or
            schedules do not match.
    """
    check_stages(recipe)
    # An epoch counts as one step: shapes do not depend on the length.
    stages = [s if s.steps else replace(s, steps=s.epochs, epochs=None) for s in recipe.stage]
    recipe = replace(recipe, stage=tuple(stages))
    plans: list[StagePlan] = []
    for run in recipe.runs:
        plan = _find_equal_plan(recipe, run, plans) or _make_plan(recipe, run, plans)
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
    # and the first repetition agree in form, method and hparams, nothing that is planned differs.
    before = plans[-1]
    is_same_form = first.setup.model.form == before.setup.model.form
    runs = (first.run, before.run, run)
    nets = [(recipe.method_of(other.stage), recipe.hparams_at(other)) for other in runs]
    return first if is_same_form and nets[0] == nets[1] == nets[2] else None


def _make_plan(recipe: Recipe, run: StageRun, plans: Sequence[StagePlan]) -> StagePlan:
    """Trace a run, whose predecessors have these plans."""
    feasible_run, missing = _without_missing_files(run)
    if run.stage.validation:
        get_spec(run.stage.validation.spec)
    try:
        setup = _init_abstract(recipe, feasible_run, [plan.setup.model for plan in plans])
        step_estimate = StepEstimate(setup=setup, data_parallel=data_parallel_of(recipe, run.stage))
        step_estimate.check_loss()
    except UserError:
        raise
    except Exception as error:  # tracing a network raises almost anything
        raise RecipeError(
            f"stage {run.name!r} cannot be traced: {error_summary(error)}",
            rule="the network, with these hyperparameters, takes the stage's patches",
            location=f"hparams {recipe.hparams_at(run)}",
            remedy="correct hparams or data.hr_patch_sizes",
        ) from error
    missing += _missing_datasets(recipe, run)
    return StagePlan(run=run, step_estimate=step_estimate, missing=tuple(missing))


def _without_missing_files(run: StageRun) -> tuple[StageRun, list[str]]:
    """Return the run without the checkpoints that do not exist, and messages about them."""
    stage = run.stage
    problems = {key: _problem_of(find_checkpoint, f) for key, f in stage.checkpoints.items()}
    missing = {key: problem for key, problem in problems.items() if problem}
    if "init_from" in missing:
        stage = replace(stage, init_from="scratch", reinit=(), prune=None)
    if "teacher" in missing:
        image_terms = {term: w for term, w in stage.loss.items() if not term.startswith("teacher_")}
        stage = replace(stage, teacher=None, loss=image_terms or {"l1": 1.0})
    if stage.prune is not None:
        # The criterion "l1" needs values, which a dry run lacks; the shapes are the same.
        stage = replace(stage, prune=Prune(criterion="first"))
    messages = [f"{key}: {problem}" for key, problem in missing.items()]
    return replace(run, stage=stage), messages


def _missing_datasets(recipe: Recipe, run: StageRun) -> list[str]:
    stage, scale = run.stage, recipe.scale_at(run)
    names = [*stage.data.dataset_weights, *([stage.validation.dataset] if stage.validation else [])]
    problems = {name: _problem_of(list_pairs, name, scale) for name in names}
    return [f"dataset {name}: {problem}" for name, problem in problems.items() if problem]


def _problem_of(fn: Callable[..., object], *args: Any) -> str | None:
    try:
        fn(*args)
    except UserError as error:
        return error.problem
    return None


def _init_abstract(recipe: Recipe, run: StageRun, models: Sequence[LoadedModel]) -> StageSetup:
    """Return what a run starts from, with abstract arrays; `models` are those of earlier runs."""
    traced: list[StageSetup] = []

    def build(nets: list[nnx.Module]) -> Any:
        def load_stage(earlier: StageRun, _: StageWeights = "ema", /) -> LoadedModel:
            return replace(models[earlier.index], net=nets[earlier.index])

        setup = StageSetup.create(recipe, run, load_stage)
        traced.append(setup)  # eval_shape returns arrays only, this is their metadata
        teacher = setup.objective.teacher
        return setup.model.net, setup.state, teacher and teacher.state

    net, state, teacher_state = nnx.eval_shape(build, [model.net for model in models])
    setup, teacher = traced[0], traced[0].objective.teacher
    objective = replace(setup.objective, teacher=teacher and replace(teacher, state=teacher_state))
    return replace(setup, model=replace(setup.model, net=net), objective=objective, state=state)


# --- scales, patches and batches of a recipe, before anything is traced ---


def check_stages(recipe: Recipe) -> None:
    """Check every stage of a recipe; datasets and checkpoints that do not exist are passed over.

    Raises:
        InvalidArgument: The network has no such hyperparameter or scale.
        RecipeError: A patch is not a multiple of the scale, smaller than the network accepts, or
            larger than an image; initial weights or a teacher have another scale; a warm-up or a
            restart is beyond the end of the stage.
        DistributedError: The processes do not divide the batch.
    """
    check_hparams(recipe)
    runs = {(run.stage.name, recipe.scale_at(run)): run for run in reversed(recipe.runs)}
    for (name, scale), run in reversed(runs.items()):
        data, min_side = run.stage.data, registry.get_method(recipe.method_of(run.stage)).min_side
        try:
            check_patch_sizes(data, scale, min_side)
            data_parallel_of(recipe, run.stage)
            _check_sources(recipe, run, scale)
            if steps := run.stage.steps:
                make_schedule(run.stage.schedule, run.stage.optimizer.learning_rate, steps)
            usable_pairs(data, scale)
        except NotFound:
            continue  # a missing dataset is listed by the dry run
        except RecipeError as error:
            raise error.with_location(f"stage {name!r}") from None


def check_hparams(recipe: Recipe) -> None:
    """Raise `InvalidArgument` unless the network has the hyperparameters of the recipe."""
    tables = [("hparams", recipe.method, recipe.hparams)]
    for stage in recipe.stage:
        location = f"stage {stage.name!r}, hparams"
        tables.append((location, recipe.method_of(stage), stage.hparams))
    for location, method, hparams in tables:
        try:
            registry.get_method(method).check_hparams(hparams)
        except UserError as error:
            raise error.with_location(location) from None


def _check_sources(recipe: Recipe, run: StageRun, scale: int) -> None:
    """Raise `RecipeError` unless initial weights and teacher are of networks of this scale.

    Weights of another scale may be initial ones if `reinit` lists the layers that depend on it.
    """
    init = run.stage.init_source
    if init == "previous" and run.index:
        init = InitFrom(stage=recipe.latest_run(run.index, None).stage.name)
    initial = init if isinstance(init, InitFrom) and not run.stage.reinit else None
    for key, source in (("init_from", initial), ("teacher", run.stage.teacher)):
        source_scale = None if source is None else _source_scale(recipe, run, source)
        if source_scale not in (None, scale):
            raise RecipeError(
                f"{key} is a network for x{source_scale}, the stage trains one for x{scale}",
                rule="the scale (hparams.scale) of a teacher and of initial weights is that of the "
                "stage's network",
                remedy="change hparams.scale"
                + ", or list the layers of the other scale in reinit" * (key == "init_from"),
            )


def _source_scale(recipe: Recipe, run: StageRun, source: InitFrom | TeacherConfig) -> int | None:
    """Return the scale of an earlier stage or of a checkpoint; None if there is no such file."""
    if source.checkpoint is None:
        return recipe.scale_at(recipe.latest_run(run.index, source.stage))
    try:
        path = find_checkpoint(source.checkpoint)
    except NotFound:
        return None
    method = registry.get_method(source.method or recipe.method_of(run.stage))
    hparams = stored_hparams(method, checkpoint_io.read_checkpoint(path))
    return method.scale_of({**hparams, **source.hparams})
