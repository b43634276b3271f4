"""The training loop: runs the stages of a recipe sequentially, with checkpoints and resume."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from esrjax import registry
from esrjax.data.datasets import Pair, list_pairs
from esrjax.data.image_io import prefetch_map
from esrjax.errors import (
    CheckpointError,
    Diverged,
    RecipeError,
    TrainingFailed,
    UnwritableFile,
    UserError,
    error_summary,
)
from esrjax.io import check_outputs
from esrjax.training.checkpoint import MAX_TO_KEEP, Checkpointer, CheckpointInfo, RunDir
from esrjax.training.distributed import is_main_process, lock_run
from esrjax.training.dry_run import check_hparams, dry_run
from esrjax.training.init_from import LoadedModel, find_checkpoint
from esrjax.training.loader import usable_pairs
from esrjax.training.logging import Meter, Throughput, TrainReport
from esrjax.training.pipeline import ImageBatch
from esrjax.training.recipe import Recipe, Stage, StageRun, StageWeights
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
    with lock_run(folder):
        run_dir = RunDir.open(folder, recipe, resume=resume, data=data)
        run_dir.check_outputs()
        checkpoints = Checkpointer(folder)
        end = 0
        for stage_run in recipe.runs:
            end += stage_run.stage.steps or 0
            if not run_dir.has_finished(stage_run):
                # All that can fail for its data comes before anything is written.
                trainer = StageTrainer(recipe, stage_run, run_dir.load)
                progress = Progress.start(trainer, checkpoints)
                run_dir.write_start(data, range(progress.total_step + 1, end + 1))
                model = fit(progress, run_dir, on_report, should_stop)
                needs_raw = recipe.needs_raw_weights(stage_run.stage)
                raw = trainer.raw_model(progress.state) if needs_raw else None
                run_dir.save(stage_run, model, raw)
        run_dir.write_start(data, range(0))
        return run_dir.export(run_dir.load(recipe.runs[-1]))


def check_recipe(recipe: Recipe) -> None:
    """Check a recipe and everything it refers to; nothing is started or written.

    Raises:
        UserError: A hyperparameter, dataset, metric spec or checkpoint is unknown or missing, or a
            stage fails in the dry run.
    """
    check_hparams(recipe)
    for stage, scale in _scales(recipe):
        method = registry.get_method(recipe.method_of(stage))
        for name in stage.data.dataset_weights:
            list_pairs(name, scale)
        if stage.validation is not None:
            pairs = Validator(stage.validation, method, scale).pairs
            for _ in prefetch_map(Pair.load, pairs):
                pass  # a damaged image, or one of a wrong size, is an error now
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


# --- one stage ---


@dataclass(kw_only=True, eq=False)
class Progress:
    """A stage in training: what is saved however the training ends.

    Attributes:
        trainer: The stage.
        checkpoints: The checkpoints of the run.
        source: The batches from `step` on.
        state: The state after `step` steps.
        step: Steps done in the stage.
        unreported: What was measured since the last report, while a report of `step` is due.
    """

    trainer: StageTrainer
    checkpoints: Checkpointer
    source: Iterator[ImageBatch]
    state: TrainState
    step: int
    unreported: Throughput | None

    @classmethod
    def start(cls, trainer: StageTrainer, checkpoints: Checkpointer) -> Progress:
        """Return a stage at its newest whole checkpoint, else at its start, ready for a step.

        A checkpoint is the whole `TrainState` (parameters, moving average, optimizer, statistics,
        best validation, step), restored bit by bit; nothing else changes from step to step. A batch
        depends on seed and step alone, so a resumed stage opens its data at its step.

        Raises:
            UserError: An image cannot be read, a validation fails, or the disk is too small.
        """
        if is_main_process():
            _check_disk_space(trainer, checkpoints)
        trainer.check_validation()
        # Steps count over all stages, and `start_step` itself is the end of the stage before.
        first = trainer.start_step + 1
        restored = checkpoints.restore(
            trainer.state, _info(trainer), range(first, first + trainer.num_steps)
        )
        state, step, unreported = trainer.state, 0, None
        if restored is not None:
            step, state, info = restored[0] - trainer.start_step, *restored[1:]
            unreported = info.unreported
        return cls(
            trainer=trainer,
            checkpoints=checkpoints,
            source=trainer.batches(step),
            state=state,
            step=step,
            unreported=unreported,
        )

    @property
    def total_step(self) -> int:
        """Steps done, over all stages."""
        return self.trainer.start_step + self.step

    def save(self) -> None:
        """Save a checkpoint; it never contains a state that has diverged.

        Raises:
            Diverged: A loss or gradient was not finite.
            CheckpointError: It cannot be written.
        """
        self.check_finite()
        info = replace(_info(self.trainer), unreported=self.unreported)
        self.checkpoints.save(self.total_step, self.state, info)

    def check_finite(self) -> None:
        """Raise `Diverged` if a loss or gradient was not finite."""
        step = int(jax.device_get(self.state.first_nonfinite_step))
        if step >= 0:
            name = self.trainer.run.name
            raise Diverged(
                f"loss or gradient is not finite at step {self.trainer.start_step + step} ({name})",
                rule="loss and gradient are finite at every step",
                location=str(self.checkpoints.folder),
                remedy="lower the learning rate or add a warm-up",
            )


def _info(trainer: StageTrainer) -> CheckpointInfo:
    return CheckpointInfo(recipe=trainer.recipe.sha256, stage=trainer.run.name)


def _check_disk_space(trainer: StageTrainer, checkpoints: Checkpointer) -> None:
    """Raise `UnwritableFile` unless the disk has space for the checkpoints that will be kept.

    While one is written, `MAX_TO_KEEP` others exist; those that exist already are counted.
    """
    state_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.state))
    num_new = MAX_TO_KEEP + 1 - min(MAX_TO_KEEP, len(checkpoints.steps()))
    free_bytes = shutil.disk_usage(checkpoints.folder.parent).free
    if num_new * state_bytes > free_bytes:
        mib, free_mib = num_new * state_bytes / 2**20, free_bytes / 2**20
        raise UnwritableFile(
            f"{num_new} checkpoints take {mib:,.1f} MiB, the disk has {free_mib:,.1f} MiB free",
            rule=f"a run keeps {MAX_TO_KEEP} checkpoints while it writes another one",
            location=str(checkpoints.folder.parent),
            remedy="free disk space, or choose another folder with -o",
        )


def fit(
    progress: Progress, run_dir: RunDir, on_report: ReportCallback, should_stop: StopCallback
) -> LoadedModel:
    """Train one stage to its end.

    Args:
        progress: The stage.
        run_dir: Where metrics are logged.
        on_report: Called with every report.
        should_stop: Called after every step.

    Returns:
        The resulting network.

    Raises:
        TrainingStopped: `should_stop` returned true; the state is saved.
        UserError: The training has failed; its message says which state is saved.
    """
    trainer, meter = progress.trainer, Meter()
    source = meter.timed(progress.source)
    with _saved_on_error(progress, run_dir, should_stop):
        if progress.unreported is not None:
            _report(progress, run_dir, on_report)
        is_done = trainer.is_done(progress.state, progress.step)
        while not is_done:
            progress.state, loss = trainer.train_step(progress.state, *next(source))
            progress.step += 1
            meter.add(loss)  # not read yet: the host does not wait for the devices
            if trainer.should_report(progress.step):
                progress.unreported = meter.throughput()
                _report(progress, run_dir, on_report)
                meter.reset()
            is_done = trainer.is_done(progress.state, progress.step)
            stop_now = should_stop()  # once per step: with several processes it counts its calls
            if stop_now or is_done or trainer.should_save(progress.step):
                progress.save()
            if stop_now:
                raise TrainingStopped(progress.total_step)
    return trainer.final_model(progress.state)


def _report(progress: Progress, run_dir: RunDir, on_report: ReportCallback) -> None:
    """Make the report that is due, with a validation if one is due."""
    assert progress.unreported is not None
    progress.check_finite()
    report = progress.trainer.report(progress.state, progress.step, progress.unreported)
    # Before the checkpoint of this step: a resumed run does not repeat the validation.
    if report.psnr is not None:
        progress.state = progress.state.with_score(report.psnr)
    progress.unreported = None
    run_dir.log_metrics(**report.as_dict())
    on_report(report)


@contextmanager
def _saved_on_error(
    progress: Progress, run_dir: RunDir, should_stop: StopCallback
) -> Generator[None]:
    """Save the state after any error within the block, and say what happened and how to go on."""
    try:
        yield
    except TrainingStopped:
        raise
    except BaseException as error:
        is_alone = jax.process_count() == 1  # the others are not at the same step
        is_saved = is_alone and _save_after(error, progress)
        if is_saved and should_stop():  # the signal has also ended worker processes
            raise TrainingStopped(progress.total_step) from error
        if isinstance(error, KeyboardInterrupt) or not (is_alone or isinstance(error, UserError)):
            raise
        raise _failure(error, progress, run_dir, is_saved=is_saved) from error
    finally:
        if isinstance(progress.source, Generator):
            progress.source.close()  # worker processes do not outlive the stage


def _save_after(error: BaseException, progress: Progress) -> bool:
    """Return whether the state, which an error left behind, is saved."""
    is_saved = progress.total_step in progress.checkpoints.steps()
    if progress.step and not is_saved and not isinstance(error, CheckpointError | Diverged):
        with suppress(Exception):  # the state was lost within a step, has diverged, or a full disk
            progress.save()
            is_saved = True
    return is_saved


def _failure(
    error: BaseException, progress: Progress, run_dir: RunDir, *, is_saved: bool
) -> UserError:
    """Return the error to report: what happened, which state is saved, how to go on."""
    latest = progress.checkpoints.latest()
    state = f"the state of step {progress.total_step} is saved"
    if not is_saved:
        state = f"the last checkpoint is of step {latest}" if latest else "nothing is saved yet"
    resume = f"{state}; continue with: esrjax train --resume -o {run_dir.path}"
    if isinstance(error, UserError):
        remedy = f"{error.remedy}; {resume}"
        return type(error)(error.problem, rule=error.rule, location=error.location, remedy=remedy)
    return TrainingFailed(
        f"the training has failed after step {progress.total_step}: {error_summary(error)}",
        rule="a step, a validation and the reading of images end without an error",
        location=_write_traceback(error, run_dir.path),
        remedy=f"correct the cause; {resume}",
    )


def _write_traceback(error: BaseException, folder: Path) -> str:
    """Write the traceback of an error of unknown cause, and return where it is."""
    file = folder / "error.txt"
    try:
        file.write_text("".join(traceback.format_exception(error)))
    except OSError:
        return str(folder)
    return str(file)


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


def _no_stage(run: StageRun, _: StageWeights = "ema", /) -> LoadedModel:
    raise AssertionError(f"the first stage needs {run.name!r}")  # the schema forbids it
