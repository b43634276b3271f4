"""The trainer of one stage: its network, optimizer, training step, batches and validation."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax import Array

from esrjax import registry
from esrjax.data.datasets import list_pairs
from esrjax.data.image_io import Pixels
from esrjax.errors import RecipeError
from esrjax.evaluation.metrics import get_spec, to_uint8
from esrjax.evaluation.score import ImageMetrics, score
from esrjax.evaluation.upscale import single_pass, uint8_upscaler
from esrjax.method import Method
from esrjax.nn.compilation import jit
from esrjax.nn.hooks import forward_with_taps
from esrjax.nn.reparam import deploy, has_branches
from esrjax.training import losses, optim, train_state
from esrjax.training.distributed import DataParallel, broadcast_from_main
from esrjax.training.init_from import (
    GraphDef,
    LoadedModel,
    StageModelLoader,
    Teacher,
    init_stage_model,
    load_teacher,
)
from esrjax.training.loader import open_batches
from esrjax.training.logging import Throughput, TrainReport
from esrjax.training.pipeline import ImageBatch, image_batches
from esrjax.training.recipe import Recipe, Stage, StageRun, Validation
from esrjax.training.train_state import Objective, TrainState

LOG_EVERY = 50  # steps between two reports
NUM_IMAGES = 3  # of a validation that loggers may show


# --- validation ---


class Validator:
    """Scores networks of one method on one dataset, in deploy form.

    Attributes:
        images: Name -> SR image of the last call, uint8, of the first `NUM_IMAGES` pairs.

    Args:
        cfg: The validation of the recipe.
        method: The method.
        scale: Upscaling factor of the networks.

    Raises:
        UserError: There is no such dataset or metric spec.
    """

    def __init__(self, cfg: Validation, method: Method, scale: int):
        self.method = method
        self.pairs, self.spec = list_pairs(cfg.dataset, scale), get_spec(cfg.spec)
        self.images: dict[str, Pixels] = {}

    def __call__(self, net: nnx.Module) -> ImageMetrics:
        """Return the mean metrics of `net`; it may be in train form and mode, and is unchanged."""
        deployed = deploy(net)
        deployed.eval()
        graphdef, state = nnx.split(deployed)
        upscaler = single_pass(lambda lr: _forward(graphdef, state, lr), self.method.data_range)
        scorable = upscaler if self.spec.needs_float_output else uint8_upscaler(upscaler)
        names = (pair.name for pair in self.pairs[:NUM_IMAGES])
        self.images = {}

        def keep_first(lr: Any) -> Any:
            sr: Any = scorable(lr)
            if name := next(names, None):
                self.images[name] = sr if sr.dtype == np.uint8 else to_uint8(sr, 1.0)
            return sr

        return score(keep_first, self.pairs, self.spec).mean


@functools.partial(jit, static_argnums=0)
def _forward(graphdef: GraphDef, state: Any, lr: Array) -> Array:
    """Run the network; compiled once per image size, since the weights are an argument."""
    return nnx.merge(graphdef, state)(lr)


# --- initial state ---


@dataclass(frozen=True, eq=False)
class StageSetup:
    """What a stage starts from; with abstract arrays it is what `dry_run` describes.

    Attributes:
        model: The initial network.
        objective: The loss, with the teacher.
        lr_schedule: Step -> learning rate.
        optimizer: The optax transformation.
        state: The initial training state.
    """

    model: LoadedModel
    objective: Objective
    lr_schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    state: TrainState

    @classmethod
    def create(cls, recipe: Recipe, run: StageRun, load_stage: StageModelLoader) -> StageSetup:
        """Build network, teacher, optimizer and training state of a stage.

        Args:
            recipe: The recipe, in steps.
            run: The stage run.
            load_stage: Returns the result of an earlier run.

        Raises:
            UserError: Initial weights, teacher or schedule do not fit the stage.
        """
        stage = run.stage
        model = init_stage_model(recipe, run, load_stage)
        if stage.train_fused and not has_branches(model.net):
            raise RecipeError(
                f"train_fused has no effect: the network of stage {run.name!r} has no branches",
                rule="train_fused is for networks in train form with reparameterized branches",
                remedy="remove train_fused",
            )
        teacher = load_teacher(recipe, run, load_stage)
        lr_schedule, optimizer = make_stage_optimizer(stage)
        adapters = make_adapters(model, teacher, stage, recipe.seed + run.index)
        graphdef, state = train_state.init_state(model.net, stage, optimizer, adapters)
        objective = Objective(
            graphdef=graphdef,
            stage=stage,
            data_range=registry.get_method(model.method).data_range,
            teacher=teacher,
        )
        return cls(model, objective, lr_schedule, optimizer, state)


def data_parallel_of(recipe: Recipe, stage: Stage) -> DataParallel:
    """Return the devices that a stage uses: those that divide its micro-batches.

    Raises:
        DistributedError: As of `DataParallel.for_batch`.
    """
    return DataParallel.for_batch(stage.data.batch_size // stage.grad_accum_steps, recipe.parallel)


def device_lines(recipe: Recipe) -> list[str]:
    """Return which devices the stages use and which are idle, one line if it is the same for all.

    Raises:
        DistributedError: As of `DataParallel.for_batch`.
    """
    texts = {stage.name: str(data_parallel_of(recipe, stage)) for stage in recipe.stage}
    if len(set(texts.values())) == 1:
        return [f"devices: {next(iter(texts.values()))}"]
    return [f"devices of stage {name!r}: {text}" for name, text in texts.items()]


def make_stage_optimizer(stage: Stage) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Return the learning-rate schedule of a stage, and its optimizer with gradient clipping.

    Raises:
        RecipeError: The schedule is longer than the stage.
    """
    assert stage.steps is not None
    lr_schedule = optim.make_schedule(stage.schedule, stage.optimizer.learning_rate, stage.steps)
    optimizer = optim.make_optimizer(stage.optimizer, lr_schedule)
    if stage.grad_clip_norm is not None:
        optimizer = optax.chain(optax.clip_by_global_norm(stage.grad_clip_norm), optimizer)
    return lr_schedule, optimizer


def make_adapters(model: LoadedModel, teacher: Teacher | None, stage: Stage, seed: int) -> Any:
    """Return the trained 1x1 kernels of the `teacher_features` term, () without that term.

    Args:
        model: The student.
        teacher: The teacher.
        stage: The stage.
        seed: Seed of the kernels.

    Raises:
        NotFound: A tap is not the path of a submodule that runs.
    """
    if teacher is None or stage.teacher is None or "teacher_features" not in stage.loss:
        return ()
    method = registry.get_method(model.method)
    teacher_net = nnx.merge(teacher.graphdef, teacher.state)
    student_channels = _tap_channels(model.net, stage.teacher.taps, method)
    teacher_channels = _tap_channels(teacher_net, teacher.tap_paths, teacher.method)
    channels = zip(student_channels, teacher_channels, strict=True)
    return losses.init_adapters(jax.random.key(seed), channels)


def _tap_channels(net: nnx.Module, paths: Iterable[str], method: Method) -> list[int]:
    """Return the number of channels of each tap, from an abstract forward pass."""
    side = max(32, method.min_side)  # any that the network accepts
    lr = jax.ShapeDtypeStruct((1, side, side, 3), "float32")
    _, features = nnx.eval_shape(lambda net, lr: forward_with_taps(net, lr, [*paths]), net, lr)
    return [feature.shape[-1] for feature in features]


# --- trainer ---


class StageTrainer:
    """Everything that training a stage needs; steps are counted within the stage.

    Args:
        recipe: The recipe, in steps.
        run: The stage run.
        load_stage: Returns the result of an earlier run.

    Attributes:
        stage: The stage of the recipe.
        method: The method.
        scale: Upscaling factor of the network.
        model: The initial network.
        objective: The loss, with the teacher.
        lr_schedule: Step -> learning rate.
        state: The initial training state, on the devices.
        num_steps: Number of steps, if `patience` does not end the stage earlier.
        start_step: Steps of the runs before this one.
        teacher_state: Variables of the teacher, replicated; None without a teacher.
        step_fn: The compiled training step.
        data_parallel: The devices.
        validator: Scores the network, None if the stage has no validation.

    Raises:
        UserError: Initial weights, teacher, schedule or batch size do not fit the stage.
    """

    def __init__(self, recipe: Recipe, run: StageRun, load_stage: StageModelLoader):
        stage, setup = run.stage, StageSetup.create(recipe, run, load_stage)
        teacher, method = setup.objective.teacher, registry.get_method(setup.model.method)
        assert stage.steps is not None  # `resolve_epochs` ran before
        self.recipe, self.run, self.stage, self.num_steps = recipe, run, stage, stage.steps
        self.method, self.model, self.objective = method, setup.model, setup.objective
        self.lr_schedule: Any = setup.lr_schedule
        self.data_parallel = data_parallel_of(recipe, stage)
        # Not the whole setup is kept: its state, which is on one device, would stay in memory.
        self.state: TrainState = self.data_parallel.place(setup.state)
        self.start_step = sum(earlier.stage.steps or 0 for earlier in recipe.runs[: run.index])
        self.teacher_state = self.data_parallel.replicate(teacher and teacher.state)
        self.step_fn = self.data_parallel.compile_step(setup.objective, setup.optimizer)
        self.scale = recipe.scale_at(run)
        self.validator = stage.validation and Validator(stage.validation, method, self.scale)

    def batches(self, start_step: int) -> Iterator[ImageBatch]:
        """Return LR and HR batches from `start_step` on, sharded over the devices."""
        # Every run draws other patches: its seed is 7919, a prime, away from that of the run before
        # it. Grain takes no seeds from 2**32 on.
        seed = (self.recipe.seed + 7919 * self.run.index) % 2**31
        shard = jax.process_index(), jax.process_count()
        batches = open_batches(self.stage.data, self.scale, seed, shard)
        return image_batches(batches, self.data_parallel, start_step, self.num_steps)

    def train_step(self, state: TrainState, lr: Array, hr: Array) -> tuple[TrainState, Array]:
        """Run one training step.

        Args:
            state: The training state. It may be donated: do not use it after the call.
            lr: LR batch (n, h, w, 3), uint8, sharded.
            hr: HR batch (n, s·h, s·w, 3), uint8, sharded.

        Returns:
            The new state and the loss, which may not be computed yet.
        """
        # An implicit transfer (a Python scalar, a NumPy array) would stall every step: raise.
        with jax.transfer_guard("disallow"):
            return self.step_fn(state, self.teacher_state, lr, hr)

    def check_validation(self) -> None:
        """Validate the initial network, so that what would fail in a validation fails now."""
        if self.validator:
            self.validator(self._network(self.state))

    def should_validate(self, step: int) -> bool:
        """Return whether the network is validated after `step` steps."""
        cfg = self.stage.validation
        return cfg is not None and (step % cfg.every == 0 or step == self.num_steps)

    def should_report(self, step: int) -> bool:
        """Return whether a report is made after `step` steps."""
        return step % LOG_EVERY == 0 or step == self.num_steps or self.should_validate(step)

    def should_save(self, step: int) -> bool:
        """Return whether a checkpoint is saved after `step` steps."""
        return step % self.stage.save_every == 0 or step == self.num_steps

    def is_done(self, state: TrainState, step: int) -> bool:
        """Return whether all steps are done, or `patience` validations did not improve.

        With `patience`, a value of the state is read after a validation, the only time that it
        changes: reading it after every step would wait for the devices.
        """
        if step >= self.num_steps:
            return True
        patience = self.stage.validation and self.stage.validation.patience
        if not patience or state.best is None or not self.should_validate(step):
            return False
        return int(state.best.evals_since_best) >= patience

    def report(self, state: TrainState, step: int, throughput: Throughput) -> TrainReport:
        """Return the report after `step` steps, with a validation if one is due.

        Args:
            state: The training state.
            step: Steps done in the stage.
            throughput: Measured since the last report.
        """
        is_due = self.should_validate(step)
        metrics = self.validator(self._network(state)) if self.validator and is_due else None
        return TrainReport(
            stage=self.run.name,
            step=self.start_step + step,
            total_steps=self.recipe.total_steps,
            **vars(throughput),
            # Of the last step; those of optax begin at 0.
            learning_rate=float(self.lr_schedule(step - 1)),
            images_per_s=throughput.steps_per_s * self.stage.data.batch_size,
            # One value for all processes: it decides on the best weights and on `patience`, where a
            # difference in the last digit would let one process stop and the others wait for it.
            psnr=metrics and broadcast_from_main(metrics.psnr),
            ssim=metrics and metrics.ssim,
            images=self.validator.images if self.validator and is_due else {},
        )

    def final_model(self, state: TrainState) -> LoadedModel:
        """Return the result of the stage: the last weights, or those with the best validation."""
        net = self._network(state, best=self.stage.select == "best")
        return replace(self.model, net=net)

    def raw_model(self, state: TrainState) -> LoadedModel:
        """Return the network with the weights after the last step, without averaging."""
        return replace(self.model, net=self._network(replace(state, ema=None)))

    def _network(self, state: TrainState, *, best: bool = False) -> nnx.Module:
        # Moments are not gathered: the network does not have them.
        state = self.data_parallel.local_replica(replace(state, opt_state=()))
        return train_state.merge_network(self.objective.graphdef, state, best=best)
