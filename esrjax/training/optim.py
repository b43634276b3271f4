"""Optax optimizers and learning-rate schedules of a stage."""

import optax

from esrjax.errors import UserError
from esrjax.training.muon import muadamw
from esrjax.training.recipe import Optimizer, Schedule


class ScheduleTooLong(UserError):
    """Raised when a schedule is longer than its stage."""


def make_optimizer(cfg: Optimizer, lr_schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return the optax transformation of an optimizer.

    Adam and AdamW are equal to PyTorch's: the weight decay of Adam is added to the gradient (L2),
    that of AdamW to the update (decoupled).

    Args:
        cfg: The optimizer of the recipe.
        lr_schedule: Step -> learning rate.
    """
    match cfg.name:
        case "adam":
            decay = optax.add_decayed_weights(cfg.weight_decay)
            return optax.chain(decay, optax.adam(lr_schedule, cfg.b1, cfg.b2, cfg.eps))
        case "adamw":
            return optax.adamw(lr_schedule, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay)
        case "muadamw":
            return muadamw(cfg, lr_schedule)


def make_schedule(cfg: Schedule, learning_rate: float, num_steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    Milestones beyond the end of the stage have no effect; a warm-up or restart there is an error.

    Args:
        cfg: The schedule of the recipe. Its steps count from the end of the warm-up.
        learning_rate: Initial learning rate, after the warm-up.
        num_steps: Steps of the stage.

    Raises:
        ScheduleTooLong: The warm-up or a restart is not within the stage.
    """
    _check_length(cfg, num_steps)
    main = _main_schedule(cfg, learning_rate, num_steps - cfg.warmup_steps)
    if not cfg.warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, learning_rate, cfg.warmup_steps)
    return optax.join_schedules([warmup, main], [cfg.warmup_steps])


def _main_schedule(cfg: Schedule, learning_rate: float, num_steps: int) -> optax.Schedule:
    match cfg.name:
        case "constant":
            return optax.constant_schedule(learning_rate)
        case "multistep":
            return optax.piecewise_constant_schedule(
                learning_rate, dict.fromkeys(cfg.milestones, cfg.gamma)
            )
        case "step":
            return optax.exponential_decay(learning_rate, cfg.step_size, cfg.gamma, staircase=True)
        case "cosine":
            return _cosine(cfg, learning_rate, num_steps)


def _cosine(cfg: Schedule, learning_rate: float, num_steps: int) -> optax.Schedule:
    """Return a half cosine down to `end_learning_rate`, and one after every restart."""
    ends = [*cfg.restarts, num_steps]
    starts = [0, *cfg.restarts]
    weights = cfg.restart_weights or (1.0,) * len(starts)
    cosines = [
        optax.cosine_decay_schedule(
            w * learning_rate, end - start, alpha=cfg.end_learning_rate / (w * learning_rate)
        )
        for w, start, end in zip(weights, starts, ends, strict=True)
    ]
    return optax.join_schedules(cosines, list(cfg.restarts))


def _check_length(cfg: Schedule, num_steps: int) -> None:
    remaining = num_steps - cfg.warmup_steps
    late = [restart for restart in cfg.restarts if restart >= remaining]
    problems = [f"a warm-up of {cfg.warmup_steps} steps"] if remaining <= 0 else []
    problems += [f"the restart at {restart}" for restart in late]
    if problems:
        raise ScheduleTooLong(
            f"{', '.join(problems)} in a stage of {num_steps} steps",
            rule="the warm-up, and the restarts counted from its end, are within the stage",
            location="schedule",
            remedy="shorten the schedule, or make the stage longer",
        )
