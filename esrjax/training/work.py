"""One stage, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import optax
from flax import nnx

from esrjax import registry
from esrjax.method import Method
from esrjax.training import cluster, distillation, feeds, optim, origin
from esrjax.training import state as states
from esrjax.training.devices import Devices, here
from esrjax.training.meter import Pace, Report
from esrjax.training.objective import Objective
from esrjax.training.origin import Held, Left
from esrjax.training.recipe import Recipe, Run, Stage
from esrjax.training.state import Graph, State
from esrjax.training.teacher import Teacher, look, teacher
from esrjax.training.validation import Validator

LOG_EVERY = 50  # steps between two lines of metrics


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What a stage needs to run.

    held: the network it begins with. first: steps of the stages before. taught: the teacher's
    weights. rate: by step of the stage.
    """

    recipe: Recipe
    run: Run
    method: Method
    held: Held
    first: int
    graph: Graph
    state: State
    taught: Any
    step: states.Step
    rate: Callable[[int], Any]
    devices: Devices
    validator: Validator | None

    @classmethod
    def prepare(cls, recipe: Recipe, run: Run, left: Left) -> Work:
        """The stage's network, teacher, optimiser and step, on the devices that divide its batch.

        left: what the stage of that name, or the one before, has left.
        """
        stage, method = run.stage, registry.plain(recipe.method)
        held = origin.begin(recipe, run, left)
        taught = teacher(stage, left)
        rate, optimiser = optimiser_of(stage)
        adapters = adapters_of(held, taught, stage, recipe.seed + run.index)
        graph, state = states.begin(held.net, stage, optimiser, adapters)
        objective = Objective(
            graph=graph, stage=stage, data_range=method.data_range, teacher=taught
        )
        devices = Devices.dividing(stage.data.batch // stage.accumulate, recipe.parallel)
        return cls(
            recipe=recipe,
            run=run,
            method=method,
            held=held,
            first=sum(each.stage.steps or 0 for each in recipe.runs[: run.index]),
            graph=graph,
            state=devices.everywhere(state),
            taught=devices.everywhere(taught and taught.state),
            step=devices.compiled(objective, optimiser),
            rate=rate,
            devices=devices,
            validator=stage.validate and Validator.of(stage.validate, method),
        )

    @property
    def stage(self) -> Stage:
        """What the recipe says of it."""
        return self.run.stage

    @property
    def steps(self) -> int:
        """How many there are at most."""
        assert self.stage.steps is not None  # epochs are counted as steps before anything runs
        return self.stage.steps

    def batches(self, done: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """LR and HR of every step after `done`, spread over the devices by pictures."""
        seed = (self.recipe.seed + 7919 * self.run.index) % 2**31  # no stages share their patches
        share = jax.process_index(), jax.process_count()
        feed = feeds.open_feed(self.stage.data, self.method.scale, seed, self.devices, share)
        return feed.since(done, self.steps)

    def advance(self, state: State, lr: jax.Array, hr: jax.Array) -> tuple[State, jax.Array]:
        """One step, without a word between the host and its devices."""
        with jax.transfer_guard("disallow"):
            return self.step(state, self.taught, lr, hr)

    def validates(self, done: int) -> bool:
        """Whether the network is scored after `done` steps."""
        validator = self.validator
        return validator is not None and (done % validator.every == 0 or done == self.steps)

    def reports(self, done: int) -> bool:
        """Whether there is something to tell after `done` steps."""
        return done % LOG_EVERY == 0 or done == self.steps or self.validates(done)

    def saves(self, done: int) -> bool:
        """Whether the state is kept after `done` steps."""
        return done % self.stage.save_every == 0 or done == self.steps

    def ended(self, state: State, done: int) -> bool:
        """Whether the stage is over: all its steps are done, or it no longer gets better."""
        patience = self.stage.validate and self.stage.validate.patience
        tired = bool(patience and state.best and int(state.best.since) >= patience)
        return done >= self.steps or tired

    def report(self, state: State, done: int, pace: Pace) -> Report:
        """Where the training stands, with the quality of the kept weights where it is asked for."""
        quality = None
        if self.validator is not None and self.validates(done):
            quality = self.validator(states.network(self.graph, here(state)))
        return Report(
            stage=self.run.name,
            step=self.first + done,
            steps=self.recipe.steps,
            loss=pace.loss,
            lr=float(self.rate(done - 1)),
            steps_per_s=pace.steps_per_s,
            images_per_s=pace.steps_per_s * self.stage.data.batch,
            waiting=pace.waiting,
            limit=pace.limit,
            psnr=quality and cluster.agreed(quality.psnr),
            ssim=quality and quality.ssim,
        )

    def left(self, state: State) -> Held:
        """The network that the stage leaves."""
        net = states.network(self.graph, here(state), best=self.stage.keep == "best")
        return replace(self.held, net=net)


def optimiser_of(stage: Stage) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The stage's rate by step, and what makes updates of gradients."""
    assert stage.steps is not None
    rate = optim.schedule(stage.schedule, stage.optimiser.lr, stage.steps)
    optimiser = optim.optimiser(stage.optimiser, rate)
    if stage.clip is None:
        return rate, optimiser
    return rate, optax.chain(optax.clip_by_global_norm(stage.clip), optimiser)


def adapters_of(held: Held, taught: Teacher | None, stage: Stage, seed: int) -> Any:
    """Learned kernels where features of student and teacher differ in width; else nothing."""
    if taught is None or stage.teacher is None or "teacher_features" not in stage.loss:
        return ()
    ours = _widths(held.net, tuple(stage.teacher.taps), registry.plain(held.method))
    net = nnx.merge(taught.graph, taught.state)
    method = registry.plain(stage.teacher.method or held.method)
    theirs = _widths(net, taught.parts, method)
    return distillation.adapters(jax.random.key(seed), list(zip(ours, theirs, strict=True)))


def _widths(net: nnx.Module, parts: tuple[str, ...], method: Method) -> list[int]:
    """How many channels the parts give."""
    side = max(32, method.min_side)
    lr = jax.ShapeDtypeStruct((1, side, side, 3), "float32")
    _, features = nnx.eval_shape(lambda net, lr: look(net, lr, parts), net, lr)
    return [each.shape[-1] for each in features]
