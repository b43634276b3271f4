"""A training: its stages one after the other, each from what was left before."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from esrjax import registry
from esrjax.errors import UserError
from esrjax.training import batches
from esrjax.training.checkpoint import Checkpoints
from esrjax.training.files import find_weights
from esrjax.training.folder import Folder
from esrjax.training.meter import Meter, Report
from esrjax.training.origin import Held
from esrjax.training.outcome import Outcomes, named
from esrjax.training.recipe import Recipe, Run, Stage
from esrjax.training.rehearsal import rehearse
from esrjax.training.state import State
from esrjax.training.validation import Validator
from esrjax.training.work import Work


class Diverged(UserError):
    """The loss or its gradient is no longer a number."""


class Stopped(Exception):
    """A training that was told to stop and has saved its state after `step` steps."""

    def __init__(self, step: int):
        super().__init__(f"stopped after step {step}")
        self.step = step


Tell = Callable[[Report], None]
Stop = Callable[[], bool]  # whether to stop after this step


def run(
    recipe: Recipe, folder: Path, *, resume: bool = False, tell: Tell = lambda _: None
) -> tuple[Path, ...]:
    """Train as the recipe says; weights, checkpoints and metrics go into `folder`.

    Gives the files of the weights, one for each form.
    """
    require(recipe)
    return carry_out(counted(recipe), folder, resume=resume, tell=tell)


def carry_out(
    recipe: Recipe, folder: Path, *, resume: bool, tell: Tell, stop: Stop = lambda: False
) -> tuple[Path, ...]:
    """The same of a recipe that is known to work and counts in steps.

    stop: asked after every step; `Stopped` once it says so.
    """
    place, outcomes = Folder.open(folder, recipe, resume=resume), Outcomes(folder, recipe)
    checkpoints = Checkpoints(folder)
    place.forget_after(checkpoints.latest() or 0)
    runs = recipe.runs
    for each in runs:
        if not outcomes.has(each):
            left = _left(outcomes, runs, each.index)
            work = Work.prepare(recipe, each, left)
            outcomes.save(each, fit(work, checkpoints, place, tell, stop))
    checkpoints.close()
    return outcomes.publish(outcomes.load(runs[-1]))


def _left(outcomes: Outcomes, runs: tuple[Run, ...], before: int) -> Callable[[str | None], Held]:
    return lambda name: outcomes.load(named(runs, before, name))


def require(recipe: Recipe) -> None:
    """Raise what is wrong with the recipe, or missing; nothing is started or written yet."""
    method = registry.plain(recipe.method)
    method.require(recipe.sizes)
    for stage in recipe.stage:
        method.require(stage.network)
        for name in stage.data.shares:
            batches.find(name, method.scale)
        if stage.validate is not None:
            Validator.of(stage.validate, method)
        for file in stage.files:
            find_weights(file)
    rehearse(recipe)


def counted(recipe: Recipe) -> Recipe:
    """The recipe with epochs counted as steps: in one epoch every picture is cropped once."""
    scale = registry.plain(recipe.method).scale
    return replace(recipe, stage=tuple(_counted(stage, scale) for stage in recipe.stage))


def _counted(stage: Stage, scale: int) -> Stage:
    if stage.epochs is None:
        return stage
    pictures = sum(len(batches.find(name, scale)) for name in stage.data.shares)
    pictures *= 1 + len(stage.data.shrink)
    steps = -(-stage.epochs * pictures // stage.data.batch)
    return replace(stage, steps=steps, epochs=None)


def fit(work: Work, checkpoints: Checkpoints, place: Folder, tell: Tell, stop: Stop) -> Held:
    """Run one stage, from the last checkpoint if that lies within it; the network it leaves."""
    state, done = _resumed(work, checkpoints)
    meter = Meter()
    source = meter.waits(work.batches(done))
    while not work.ended(state, done):
        state, loss = work.advance(state, *next(source))
        done += 1
        meter.add(loss)
        if work.reports(done):
            _require_finite(state, work, checkpoints)
            report = work.report(state, done, meter.pace())
            state = state if report.psnr is None else state.judged(report.psnr)
            place.note(**vars(report))
            tell(report)
            meter.reset()
        stopped = stop()
        if stopped or work.saves(done) or work.ended(state, done):
            _require_finite(state, work, checkpoints)
            checkpoints.save(work.first + done, state, {"stage": work.run.name})
        if stopped:
            raise Stopped(work.first + done)
    return work.left(state)


def _resumed(work: Work, checkpoints: Checkpoints) -> tuple[State, int]:
    """The state of the last checkpoint, if it is of this stage, and the steps that are done."""
    at = checkpoints.latest() or 0
    if at <= work.first:
        return work.state, 0
    state, _ = checkpoints.restore(at, work.state)
    return state, at - work.first


def seconds_per_step(recipe: Recipe, steps: int = 8) -> float:
    """What a step of the first stage takes here, measured over a few, compilation apart."""
    recipe = counted(recipe)
    work = Work.prepare(recipe, recipe.runs[0], _nothing_left)
    state, source = work.state, work.batches(0)
    start = time.perf_counter()
    for done, (lr, hr) in zip(range(-2, steps), source, strict=False):
        state, loss = work.advance(state, lr, hr)
        jax.block_until_ready(loss)
        start = time.perf_counter() if done < 0 else start
    return (time.perf_counter() - start) / steps


def _nothing_left(name: str | None) -> Held:
    raise AssertionError(f"the first stage starts from {name!r}")  # the schema forbids it


def _require_finite(state: State, work: Work, checkpoints: Checkpoints) -> None:
    bad = int(jax.device_get(state.bad))
    if bad < 0:
        return
    last = checkpoints.latest()
    raise Diverged(
        f"the loss or its gradient is not a number at step {work.first + bad} ({work.run.name})",
        rule="a training goes on with finite numbers only",
        place=str(checkpoints.folder),
        remedy=f"lower the rate or warm it up; the last good checkpoint is of step {last}"
        if last is not None
        else "lower the rate or warm it up; there is no checkpoint before that step",
    )
