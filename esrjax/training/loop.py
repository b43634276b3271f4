"""A recipe, run: for each stage prepare, batches, fit; then the weights of the last."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from esrjax import registry
from esrjax.errors import UserError
from esrjax.method import Form, Method
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import tensors
from esrjax.training import batches, losses, optim
from esrjax.training import state as states
from esrjax.training.checkpoint import Checkpoints
from esrjax.training.folder import Folder
from esrjax.training.meter import Meter, Pace, Report
from esrjax.training.recipe import Recipe, Stage
from esrjax.training.state import Graph, State
from esrjax.training.validation import Validator

LOG_EVERY = 50  # steps between two lines of metrics


class Diverged(UserError):
    """The loss or its gradient is no longer a number."""


Tell = Callable[[Report], None]


def run(recipe: Recipe, folder: Path, *, resume: bool = False, tell: Tell = lambda _: None) -> None:
    """Train as the recipe says; weights, checkpoints and metrics go into `folder`."""
    method = require(recipe)
    place = Folder.open(folder, recipe, resume=resume)
    checkpoints = Checkpoints(folder)
    at = checkpoints.latest() or 0
    place.forget_after(at)
    net, first = _new(recipe, method, 0), 0
    for index, stage in enumerate(recipe.stage):
        if stage.start == "new" and index:
            net = _new(recipe, method, index)
        if at <= first + stage.steps:
            net = fit(Work.prepare(recipe, index, method, net, first), checkpoints, place, at, tell)
        first += stage.steps
    checkpoints.close()
    save(recipe, method, net, folder)


def require(recipe: Recipe) -> Method:
    """The recipe's method, once all that it names is found; nothing is read or written yet."""
    method = registry.plain(recipe.method)
    method.require(recipe.sizes)
    for stage in recipe.stage:
        for name in stage.data.sets:
            batches.find(name, method.scale)
        if stage.validate is not None:
            Validator.of(stage.validate, method)
    return method


def _new(recipe: Recipe, method: Method, index: int) -> nnx.Module:
    return method.build(seed=recipe.seed + index, **recipe.sizes)


def save(recipe: Recipe, method: Method, net: nnx.Module, folder: Path) -> None:
    """Write both forms of the network: `train.safetensors` and `deploy.safetensors`."""
    naming, note = Naming(method.torch_names), f"recipe {recipe.sha256}"
    forms: dict[Form, nnx.Module] = {"train": net, "deploy": deploy(net)}
    for form, held in forms.items():
        said = archive.describe(recipe.method, method, form, recipe.sizes, note=note)
        archive.write_safetensors(folder / f"{form}.safetensors", tensors(held, naming), said)


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One stage, ready to run. first: steps of the stages before. rate: by step of the stage."""

    recipe: Recipe
    index: int
    stage: Stage
    method: Method
    first: int
    graph: Graph
    state: State
    step: states.Step
    rate: Callable[[int], Any]
    mesh: Mesh
    validator: Validator | None

    @classmethod
    def prepare(
        cls, recipe: Recipe, index: int, method: Method, net: nnx.Module, first: int
    ) -> Work:
        """The stage's network, optimiser and step, on all devices that divide its batch."""
        stage = recipe.stage[index]
        rate = optim.schedule(stage.schedule, stage.optimiser.lr, stage.steps)
        optimiser = optim.optimiser(stage.optimiser, rate)
        graph, state = states.begin(net, optimiser, stage.ema)
        step = states.step(
            graph,
            optimiser,
            losses.weighted(stage.loss),
            data_range=method.data_range,
            ema=stage.ema,
        )
        devices = jax.devices()[: math.gcd(stage.data.batch, jax.device_count())]
        mesh = Mesh(np.asarray(devices), ("data",))
        return cls(
            recipe=recipe,
            index=index,
            stage=stage,
            method=method,
            first=first,
            graph=graph,
            state=jax.device_put(state, NamedSharding(mesh, PartitionSpec())),
            step=jax.jit(step, donate_argnums=0),
            rate=rate,
            mesh=mesh,
            validator=stage.validate and Validator.of(stage.validate, method),
        )

    def batches(self, done: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        """LR and HR of every step after `done`, spread over the devices by pictures."""
        seed = (self.recipe.seed + 7919 * self.index) % 2**31  # no two stages see the same patches
        source = batches.open_batches(self.stage.data, self.method.scale, seed)
        spread = NamedSharding(self.mesh, PartitionSpec("data"))
        for batch in source.since(done, self.stage.steps):
            yield jax.device_put((batch["lr"], batch["hr"]), spread)

    def reports(self, done: int) -> bool:
        """Whether there is something to tell after `done` steps."""
        return done % LOG_EVERY == 0 or done == self.stage.steps or self._validates(done)

    def _validates(self, done: int) -> bool:
        validator = self.validator
        return validator is not None and (done % validator.every == 0 or done == self.stage.steps)

    def report(self, state: State, done: int, pace: Pace) -> Report:
        """Where the training stands, with the quality of the kept weights where it is asked for."""
        quality = None
        if self.validator is not None and self._validates(done):
            quality = self.validator(states.network(self.graph, state))
        return Report(
            stage=self.stage.name,
            step=self.first + done,
            steps=self.recipe.steps,
            loss=pace.loss,
            lr=float(self.rate(done - 1)),
            steps_per_s=pace.steps_per_s,
            images_per_s=pace.steps_per_s * self.stage.data.batch,
            waiting=pace.waiting,
            psnr=quality and quality.psnr,
            ssim=quality and quality.ssim,
        )


def fit(work: Work, checkpoints: Checkpoints, place: Folder, at: int, tell: Tell) -> nnx.Module:
    """Run one stage, from step `at` of the whole training on; the network it leaves."""
    state, stage = work.state, work.stage
    if at > work.first:
        state, _ = checkpoints.restore(at, state)
    done = max(0, at - work.first)
    meter = Meter()
    for lr, hr in meter.waits(work.batches(done)):
        with jax.transfer_guard("disallow"):
            state, loss = work.step(state, lr, hr)
        done += 1
        meter.add(loss)
        if work.reports(done):
            _require_finite(state, work, checkpoints)
            report = work.report(state, done, meter.pace())
            place.note(**vars(report))
            tell(report)
            meter.reset()
        if done % stage.save_every == 0 or done == stage.steps:
            _require_finite(state, work, checkpoints)
            checkpoints.save(work.first + done, state, {"stage": stage.name})
    return states.network(work.graph, state)


def seconds_per_step(recipe: Recipe, steps: int = 8) -> float:
    """What a step of the first stage takes here, measured over a few, compilation apart."""
    method = registry.plain(recipe.method)
    work = Work.prepare(recipe, 0, method, _new(recipe, method, 0), 0)
    state, source = work.state, work.batches(0)
    start = time.perf_counter()
    for done, (lr, hr) in zip(range(-2, steps), source, strict=False):
        state, loss = work.step(state, lr, hr)
        jax.block_until_ready(loss)
        start = time.perf_counter() if done < 0 else start
    return (time.perf_counter() - start) / steps


def _require_finite(state: State, work: Work, checkpoints: Checkpoints) -> None:
    bad = int(jax.device_get(state.bad))
    if bad < 0:
        return
    last = checkpoints.latest()
    raise Diverged(
        f"the loss or its gradient is not a number at step {work.first + bad} ({work.stage.name})",
        rule="a training goes on with finite numbers only",
        place=str(checkpoints.folder),
        remedy=f"lower the rate or warm it up; the last good checkpoint is of step {last}"
        if last is not None
        else "lower the rate or warm it up; there is no checkpoint before that step",
    )
