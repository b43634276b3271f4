"""The optimizer MuAdamW: Muon for matrices, AdamW for all other parameters.

Source: NTIRE 2026 report, VARH-AI, Eq. 13-15.
"""

import math
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from esrjax.errors import RecipeError
from esrjax.training.recipe import Optimizer, Schedule

ParamLabel = Literal["muon", "adamw"]

NS_COEFFS = (3.4445, -4.7750, 2.0315)  # Newton-Schulz: a, b, c of X <- aX + (bA + cA²)X, A = XXᵀ
NS_STEPS = 5

_LORA_DIMENSION_NUMBERS = MuonDimensionNumbers(reduction_axis=1, output_axis=0)  # axes (out, in)
_LORA_NAMES = ("lora_A", "lora_B")


def muadamw(cfg: Optimizer, lr_schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return MuAdamW.

    AdamW has the learning rate `lr_schedule`, Muon that times `muon_learning_rate / learning_rate`.
    Both decay weights by `1 - η · weight_decay`, η being AdamW's rate (Eq. 15). What the report
    leaves unspecified is as in `optax.contrib.muon`: the Nesterov momentum is bias-corrected and
    divided by its Frobenius norm, and the update is scaled by `√max(1, out / in)`.

    Args:
        cfg: The optimizer of the recipe, "muadamw".
        lr_schedule: Step -> learning rate of AdamW.
    """
    assert cfg.muon_learning_rate is not None  # the schema requires it
    ratio = cfg.muon_learning_rate / cfg.learning_rate
    muon = optax.contrib.muon(
        lambda step: ratio * lr_schedule(step),
        ns_coeffs=NS_COEFFS,
        ns_steps=NS_STEPS,
        beta=cfg.momentum,
        weight_decay=cfg.weight_decay / ratio,  # optax multiplies by Muon's rate, Eq. 15 by AdamW's
        muon_weight_dimension_numbers=_dimension_numbers_tree,
    )
    # Not the AdamW branch inside optax.contrib.muon: that one uses Nesterov momentum.
    adamw = optax.adamw(lr_schedule, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay)
    return optax.partition({"muon": muon, "adamw": adamw}, param_labels)


def param_labels(params: Any) -> Any:
    """Return the label of each parameter for `optax.partition`: a tree of "muon" and "adamw".

    Muon orthogonalizes the update of a matrix, so it is applied to parameters that act as matrices,
    selected by name and shape: LoRA factors, linear weights `(in, out)`, and convolution kernels
    `(kh, kw, in / groups, out)`, read as `(kh·kw·in / groups, out)`.

    AdamW is applied to all others: parameters of one axis (biases, norms, scales), those not named
    `weight` (temperatures, states of scans, the adapters of `teacher_features`), embedding tables,
    depthwise kernels (independent filters, not a matrix), and matrices of a single row or column
    (orthogonalization would only normalize them). The report applies Muon to every tensor with two
    or more axes. The groups of other grouped convolutions cannot be inferred from a parameter; they
    are treated as one matrix.

    Args:
        params: A pytree of parameters, or of their shapes.
    """

    def label(path: Any, leaf: Any) -> ParamLabel:
        return "adamw" if _dimension_numbers(path, leaf) is None else "muon"

    return jax.tree_util.tree_map_with_path(label, params)


def _dimension_numbers_tree(params: Any) -> Any:
    """Return the dimension numbers of each parameter.

    `params` contains matrices only: `optax.partition` masks the parameters of AdamW out of the tree
    that it passes to Muon, and masked leaves are not visited.
    """
    return jax.tree_util.tree_map_with_path(_dimension_numbers, params)


def _dimension_numbers(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
    """Return the input and output axes of a parameter that is a matrix, None if it is not.

    `path` ends with `.value` where a leaf is inside of an `nnx.Variable`.
    """
    names = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value").split(".")
    name, module_name, shape = names[-1], ".".join(names[-2:-1]), leaf.shape
    if len(shape) < 2 or 1 in (math.prod(shape[:-1]), shape[-1]):  # one axis, one row or column
        return None
    if name in _LORA_NAMES:
        return _LORA_DIMENSION_NUMBERS
    is_depthwise = len(shape) > 2 and shape[-2] == 1  # one input channel per group
    is_embedding = module_name.startswith("embedding")  # its rows are looked up, not multiplied
    if name != "weight" or is_depthwise or is_embedding:
        return None
    return MuonDimensionNumbers(tuple(range(len(shape) - 1)), len(shape) - 1)


# --------------------------------------------------------------------------------------------------
# Optax optimizers and learning-rate schedules of a stage.
# --------------------------------------------------------------------------------------------------


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
        RecipeError: The warm-up or a restart is not within the stage.
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
        raise RecipeError(
            f"{', '.join(problems)} in a stage of {num_steps} steps",
            rule="the warm-up, and the restarts counted from its end, are within the stage",
            location="schedule",
            remedy="shorten the schedule, or make the stage longer",
        )
