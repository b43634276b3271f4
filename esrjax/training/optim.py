"""Optimisers and rate schedules, from what a stage says to optax."""

import optax

from esrjax.training.recipe import Optimiser, Schedule


def optimiser(said: Optimiser, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adam or AdamW as PyTorch has them, at the given rate."""
    if said.name == "adam":
        return optax.adam(rate, said.b1, said.b2, said.eps)
    return optax.adamw(rate, said.b1, said.b2, said.eps, weight_decay=said.weight_decay)


def schedule(said: Schedule, lr: float, steps: int) -> optax.Schedule:
    """The rate at every step of a stage of `steps`."""
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
