"""Optimisers and rate schedules, from what a stage says to optax."""

import optax

from esrjax.errors import UserError
from esrjax.training.muon import muadamw
from esrjax.training.recipe import Optimiser, Schedule


class ScheduleTooLong(UserError):
    """A schedule that does not fit into its stage."""


def optimiser(said: Optimiser, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam and AdamW as PyTorch has them, or MuAdamW, at the given rate.

    The decay of Adam is added to the gradient, that of AdamW to the step.
    """
    match said.name:
        case "adam":
            decay = optax.add_decayed_weights(said.weight_decay)
            return optax.chain(decay, optax.adam(rate, said.b1, said.b2, said.eps))
        case "adamw":
            return optax.adamw(rate, said.b1, said.b2, said.eps, weight_decay=said.weight_decay)
        case "muadamw":
            return muadamw(said, rate)


def schedule(said: Schedule, lr: float, steps: int) -> optax.Schedule:
    """The rate at every step of a stage of `steps`; after a warm-up, all else counts from its end.

    Milestones beyond the stage never come; a warm-up or restart beyond it is an error.
    """
    _require_room(said, steps)
    main = _main(said, lr, steps - said.warmup_steps)
    if not said.warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, lr, said.warmup_steps)
    return optax.join_schedules([warmup, main], [said.warmup_steps])


def _main(said: Schedule, lr: float, steps: int) -> optax.Schedule:
    match said.name:
        case "constant":
            return optax.constant_schedule(lr)
        case "multistep":
            return optax.piecewise_constant_schedule(lr, dict.fromkeys(said.milestones, said.gamma))
        case "halving":
            return optax.exponential_decay(lr, said.every, said.gamma, staircase=True)
        case "cosine":
            return _cosine(said, lr, steps)


def _cosine(said: Schedule, lr: float, steps: int) -> optax.Schedule:
    """One half cosine down to `end_lr`, or one for every restart."""
    ends = [*said.restarts, steps]
    starts = [0, *said.restarts]
    weights = said.restart_weights or (1.0,) * len(starts)
    pieces = [
        optax.cosine_decay_schedule(w * lr, end - start, alpha=said.end_lr / (w * lr))
        for w, start, end in zip(weights, starts, ends, strict=True)
    ]
    return optax.join_schedules(pieces, list(said.restarts))


def _require_room(said: Schedule, steps: int) -> None:
    after = steps - said.warmup_steps
    late = [restart for restart in said.restarts if restart >= after]
    problems = [f"a warm-up of {said.warmup_steps} steps"] if after <= 0 else []
    problems += [f"the restart at {restart}" for restart in late]
    if problems:
        raise ScheduleTooLong(
            f"{', '.join(problems)} in a stage of {steps} steps",
            rule="warm-up and restarts, which count from its end, leave steps of the stage to go",
            place="schedule",
            remedy="shorten the schedule, or make the stage longer",
        )
