"""Runtime over the pictures of a set as the organisers' program measures it.

What the program does: every picture once, in order, one forward pass with nothing before it but
what a team's constructor or loader ran, from the call until the device is done; no repetition, no
outlier left out, and the first picture in the mean. What JAX adds: a program for every size of
picture. These are compiled before the loop, outside the clock, and never called there.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from esrjax.contest import clock
from esrjax.contest.clock import Program, forward
from esrjax.contest.record import Harness
from esrjax.contest.rules import Rules
from esrjax.model import Model, require_side
from esrjax.network import ops
from esrjax.pictures.pairs import Pair, Progress


def run(model: Model, pairs: Sequence[Pair], rules: Rules, progress: Progress = iter) -> Harness:
    """Each picture once; for a cold start as in the contest, the first work of its process."""
    programs = _programs(model, pairs)
    passes = rules.warm_up(model.method.team)
    if rules.program and passes:
        _warm_up(model, rules.program.side, passes)
    times = {pair.name: _timed(programs, _lr(model, pair)) for pair in progress(pairs)}
    return Harness(
        each=times,
        warm_up=passes,
        shapes=len(programs),
        compile_s=sum(program.compile_s for program in programs.values()),
        peak_mib=clock.peak_mib(),
        program_mib=max((program.mib or 0 for program in programs.values()), default=0) or None,
        device=clock.device(),
        body=ops.body.value,
    )


def _programs(model: Model, pairs: Sequence[Pair]) -> dict[tuple[int, ...], Program]:
    shapes = dict.fromkeys(_lr(model, pair).shape for pair in pairs)
    return {shape: clock.compiled(forward(model.net), jnp.zeros(shape)) for shape in shapes}


def _warm_up(model: Model, side: int, passes: int) -> None:
    lr = jnp.zeros((1, side, side, 3))
    program = clock.compiled(forward(model.net), lr)
    for _ in range(passes):
        clock.run_ms(program, lr)


def _timed(programs: dict[tuple[int, ...], Program], lr: Array) -> float:
    """The picture is on the device before the clock starts."""
    return clock.run_ms(programs[lr.shape], jax.block_until_ready(lr))


def _lr(model: Model, pair: Pair) -> Array:
    """`(1, h, w, 3)`, white at the method's range."""
    pixels = pair.load()[0]
    require_side(model.name, model.method.min_side, pixels.shape[:2])
    white = np.float32(255 / model.method.data_range)
    return jax.device_put(pixels[None].astype(np.float32) / white)
