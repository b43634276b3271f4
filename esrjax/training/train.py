"""The training loop: runs the stages of a recipe sequentially, with checkpoints and resume."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from esrjax import registry
from esrjax.data.datasets import list_pairs
from esrjax.errors import Diverged, RecipeError
from esrjax.io import check_outputs
from esrjax.training.checkpoint import Checkpointer, RunDir
from esrjax.training.dry_run import check_hparams, dry_run
from esrjax.training.init_from import LoadedModel, find_checkpoint
from esrjax.training.loader import usable_pairs
from esrjax.training.logging import Meter, TrainReport
from esrjax.training.recipe import Recipe, Stage, StageRun
from esrjax.training.run_data import DataSummaries, summarize_data
from esrjax.training.stage_trainer import StageTrainer, Validator
from esrjax.training.train_state import TrainState


class TrainingStopped(Exception):
    """Raised when a training has been stopped, after its state was saved.

    Attributes:
        step: Steps done, over all stages.
    """

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


ReportCallback = Callable[[TrainReport], None]
StopCallback = Callable[[], bool]  # called after every step: whether to stop


def run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    on_report: ReportCallback = lambda _: None,
) -> tuple[Path, ...]:
    """Run a recipe.

    A run that was interrupted and resumed is bit-exact: it ends with the same weights as one that
    was not (on a CPU, with the same number of devices). Batches and augmentation are functions of
    seed and step, and a checkpoint contains the whole training state.

    Args:
        recipe: The recipe.
        folder: Where weights, checkpoints and metrics are written.
        resume: Whether to continue the run in `folder`.
        on_report: Called with every report, on all processes.

    Returns:
        The files of the final weights, one for each form (train, deploy) of the network.

    Raises:
        UserError: The recipe or the folder is invalid.
        Diverged: The loss or the gradient is not finite.
    """
    check_recipe(recipe)
    return run_stages(resolve_epochs(recipe), folder, resume=resume, on_report=on_report)


def run_stages(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool,
    on_report: ReportCallback,
    should_stop: StopCallback = lambda: False,
    data: DataSummaries | None = None,
) -> tuple[Path, ...]:
    """Run a recipe that `check_recipe` accepts and whose length is in steps.

    Finished stages are skipped; the unfinished one continues from the last checkpoint.

    Args:
        recipe: The recipe.
        folder: Where weights, checkpoints and metrics are written.
        resume: Whether to continue the run in `folder`.
        on_report: Called with every report, on all processes.
        should_stop: Called after every step.
        data: What `summarize_data` returns of the recipe; computed where it is not given.

    Returns:
        The files of the final weights, one for each form (train, deploy) of the network.

    Raises:
        TrainingStopped: `should_stop` returned true; the state is saved.
        Diverged: The loss or the gradient is not finite.
    """
    if not resume:
        files = [file for stage in recipe.stage for file in stage.checkpoints.values()]
        outputs = [folder / f"{form}.safetensors" for form in ("train", "deploy")]
        check_outputs(outputs, map(find_checkpoint, files))
    data = summarize_data(recipe) if data is None else data
    run_dir = RunDir.open(folder, recipe, resume=resume, data=data)
    checkpoints = Checkpointer(folder)
    # Steps after the last checkpoint run again, with the same values, and are logged again.
    run_dir.truncate_metrics(checkpoints.latest() or 0)
    for stage_run in recipe.runs:
        if not run_dir.has_finished(stage_run):
            trainer = StageTrainer(recipe, stage_run, run_dir.load)
            run_dir.save(stage_run, fit(trainer, checkpoints, run_dir, on_report, should_stop))
    checkpoints.close()
    return run_dir.export(run_dir.load(recipe.runs[-1]))


def check_recipe(recipe: Recipe) -> None:
    """Check a recipe and everything it refers to; nothing is started or written.

    Raises:
        UserError: A hyperparameter, dataset, metric spec or checkpoint is unknown or missing, or a
            stage fails in the dry run.
    """
    check_hparams(recipe)
    method = registry.get_method(recipe.method)
    for stage, scale in _scales(recipe):
        for name in stage.data.dataset_weights:
            list_pairs(name, scale)
        if stage.validation is not None:
            Validator(stage.validation, method, scale)
        for file in stage.checkpoints.values():
            find_checkpoint(file)
    dry_run(recipe)


def resolve_epochs(recipe: Recipe) -> Recipe:
    """Return the recipe with epochs converted to steps; in an epoch every image is cropped once."""
    return replace(recipe, stage=tuple(_with_steps(*item) for item in _scales(recipe)))


def _scales(recipe: Recipe) -> list[tuple[Stage, int]]:
    """Return every stage with the upscaling factor of its first run."""
    scales = {run.stage.name: recipe.scale_at(run) for run in reversed(recipe.runs)}
    return [(stage, scales[stage.name]) for stage in recipe.stage]


def _with_steps(stage: Stage, scale: int) -> Stage:
    if stage.epochs is None:
        return stage
    num_images = sum(map(len, usable_pairs(stage.data, scale)))
    steps = -(-stage.epochs * num_images // stage.data.batch_size)  # rounded up
    if steps >= 2**31:
        raise RecipeError(
            f"{stage.epochs} epochs of {num_images} images are {steps} steps",
            rule="a stage has less than 2^31 steps",
            location=f"stage {stage.name!r}",
            remedy="reduce epochs",
        )
    return replace(stage, steps=steps, epochs=None)


def fit(
    trainer: StageTrainer,
    checkpoints: Checkpointer,
    run_dir: RunDir,
    on_report: ReportCallback,
    should_stop: StopCallback,
) -> LoadedModel:
    """Train one stage, from the last checkpoint if that belongs to it.

    Args:
        trainer: The stage.
        checkpoints: The checkpoints of the run.
        run_dir: Where metrics are logged.
        on_report: Called with every report.
        should_stop: Called after every step.

    Returns:
        The resulting network.

    Raises:
        TrainingStopped: `should_stop` returned true; the state is saved.
        Diverged: The loss or the gradient is not finite.
    """
    state, step = _resume(trainer, checkpoints)
    meter = Meter()
    # A batch depends on seed and step alone, so a resumed stage opens its data at `step` and gets
    # the batches that it would have got without the interruption.
    source = meter.timed(trainer.batches(step))
    is_done = trainer.is_done(state, step)
    while not is_done:
        state, loss = trainer.train_step(state, *next(source))
        step += 1
        meter.add(loss)  # not read yet: the host does not wait for the devices
        if trainer.should_report(step):
            _check_finite(state, trainer, checkpoints)
            report = trainer.report(state, step, meter.throughput())
            # Before the checkpoint of this step: a resumed run does not repeat the validation.
            state = state if report.psnr is None else state.with_score(report.psnr)
            run_dir.log_metrics(**vars(report))
            on_report(report)
            meter.reset()
        is_done = trainer.is_done(state, step)
        stop_now = should_stop()  # once per step: with several processes it counts its calls
        if stop_now or is_done or trainer.should_save(step):
            # A checkpoint never contains a state that has diverged.
            _check_finite(state, trainer, checkpoints)
            checkpoints.save(trainer.start_step + step, state, {"stage": trainer.run.name})
        if stop_now:
            raise TrainingStopped(trainer.start_step + step)
    return trainer.final_model(state)


def _resume(trainer: StageTrainer, checkpoints: Checkpointer) -> tuple[TrainState, int]:
    """Return the state and the number of steps done in this stage, from the last checkpoint.

    A checkpoint is the whole `TrainState` (parameters, moving average, optimizer, statistics, best
    validation, step), restored bit by bit; nothing else changes from step to step.
    """
    step = checkpoints.latest() or 0
    # Steps count over all stages: one that is not beyond `start_step` is of an earlier stage, and
    # `start_step` itself is the end of the stage before.
    if step <= trainer.start_step:
        return trainer.state, 0
    return checkpoints.restore(step, trainer.state), step - trainer.start_step


def measure_step_time(recipe: Recipe, num_steps: int = 8) -> float:
    """Return the mean seconds of a step of the first stage, after two warm-up steps.

    Args:
        recipe: The recipe.
        num_steps: Number of timed steps.
    """
    recipe = resolve_epochs(recipe)
    trainer = StageTrainer(recipe, recipe.runs[0], _no_stage)
    state, source = trainer.state, trainer.batches(0)
    start = time.perf_counter()
    for index, (lr, hr) in zip(range(-2, num_steps), source, strict=False):
        state, loss = trainer.train_step(state, lr, hr)
        jax.block_until_ready(loss)
        start = time.perf_counter() if index < 0 else start  # restarts after each warm-up step
    return (time.perf_counter() - start) / num_steps


def _no_stage(run: StageRun) -> LoadedModel:
    raise AssertionError(f"the first stage needs {run.name!r}")  # the schema forbids it


def _check_finite(state: TrainState, trainer: StageTrainer, checkpoints: Checkpointer) -> None:
    step = int(jax.device_get(state.first_nonfinite_step))
    if step < 0:
        return
    latest = checkpoints.latest()
    resume_point = "there is no checkpoint before that step"
    if latest is not None:
        resume_point = f"the last checkpoint is of step {latest}"
    raise Diverged(
        f"loss or gradient is not finite at step {trainer.start_step + step} ({trainer.run.name})",
        rule="loss and gradient are finite at every step",
        location=str(checkpoints.folder),
        remedy=f"lower the learning rate or add a warm-up; {resume_point}",
    )
