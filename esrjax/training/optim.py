"""Optax optimizers and learning-rate schedules of a stage, and the optimizer MuAdamW.

MuAdamW is Muon for matrices and AdamW for all other parameters. Source: NTIRE 2026 report, VARH-AI,
Eq. 13-15. LARS (You et al. 2017, arXiv 1708.03888) and LAMB (You et al. 2019, arXiv 1904.00962)
scale the update of each layer by a trust ratio.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.tree_util import keystr, tree_map_with_path
from optax.contrib import MuonDimensionNumbers

from esrjax import registry
from esrjax.errors import RecipeError
from esrjax.training.recipe import Optimizer, Schedule

NS_COEFFS = (3.4445, -4.7750, 2.0315)  # Newton-Schulz: a, b, c of X <- aX + (bA + cA²)X, A = XXᵀ
NS_STEPS = 5

LORA_FACTORS = ("lora_A", "lora_B")  # parameters of `nn.lora.LoRAConv2d`, matrices (out, in)


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
    # the schema requires the first and sets the second
    assert cfg.muon_learning_rate is not None and cfg.momentum is not None
    ratio = cfg.muon_learning_rate / cfg.learning_rate
    muon = optax.contrib.muon(
        lambda step: ratio * lr_schedule(step),
        ns_coeffs=NS_COEFFS,
        ns_steps=NS_STEPS,
        beta=cfg.momentum,
        weight_decay=cfg.weight_decay / ratio,  # optax multiplies by Muon's rate, Eq. 15 by AdamW's
        # Only of matrices: optax.partition masks the parameters of AdamW out of the tree that it
        # passes to Muon, and masked leaves are not visited.
        muon_weight_dimension_numbers=partial(tree_map_with_path, _dimension_numbers),
    )
    # Not the AdamW branch inside optax.contrib.muon: that one uses Nesterov momentum.
    return optax.partition({"muon": muon, "adamw": adamw(cfg, lr_schedule)}, param_labels)


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

    def label(path: Any, leaf: Any) -> Literal["muon", "adamw"]:
        return "adamw" if _dimension_numbers(path, leaf) is None else "muon"

    return tree_map_with_path(label, params)


def param_path(path: Any) -> str:
    """Return the path of a parameter, `block_1.c1.weight`.

    Args:
        path: Key path of a leaf, which ends with `.value` where it is inside of an `nnx.Variable`.
    """
    return keystr(path, simple=True, separator=".").removesuffix(".value")


def _dimension_numbers(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
    """Return the input and output axes of a parameter that is a matrix, None if it is not."""
    *parents, name = param_path(path).split(".")
    shape = leaf.shape
    if len(shape) < 2 or 1 in (math.prod(shape[:-1]), shape[-1]):  # one axis, one row or column
        return None
    if name in LORA_FACTORS:
        return MuonDimensionNumbers(reduction_axis=1, output_axis=0)
    is_depthwise = len(shape) > 2 and shape[-2] == 1  # one input channel per group
    # The rows of an embedding table are looked up, not multiplied.
    is_embedding = bool(parents) and parents[-1].startswith("embedding")
    if name != "weight" or is_depthwise or is_embedding:
        return None
    return MuonDimensionNumbers(tuple(range(len(shape) - 1)), len(shape) - 1)


# --- optimizers and schedules ---


def make_optimizer(cfg: Optimizer, lr_schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return the optax transformation of an optimizer: an entry point of `esrjax.optimizers`.

    Args:
        cfg: The optimizer of the recipe.
        lr_schedule: Step -> learning rate.
    """
    factory = registry.get_component(registry.OPTIMIZER_GROUP, cfg.name, "optimizer", Callable)
    return factory(cfg, lr_schedule)


def adam(cfg: Optimizer, lr_schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Adam as in PyTorch: the weight decay is added to the gradient (L2)."""
    decay = optax.add_decayed_weights(cfg.weight_decay)
    return optax.chain(decay, optax.adam(lr_schedule, cfg.b1, cfg.b2, cfg.eps))


def adamw(cfg: Optimizer, lr_schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return AdamW as in PyTorch: the weight decay is added to the update (decoupled)."""
    return optax.adamw(lr_schedule, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay)


def lamb(cfg: Optimizer, lr_schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return LAMB (You et al. 2019, algorithm 2), with Adam for vectors and scalars.

    The trust ratio of a layer is `|w| / |u|`, with `u` the update of AdamW, and 1 where one of the
    two is zero. The paper's φ, which bounds `|w|`, is the identity, as in its experiments.
    """
    weights = optax.lamb(lr_schedule, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay)
    others = optax.adam(lr_schedule, cfg.b1, cfg.b2, cfg.eps)
    return optax.partition({"lamb": weights, "adam": others}, partial(optimizer_labels, "lamb"))


def lars(cfg: Optimizer, lr_schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return LARS (You et al. 2017, algorithm 1), with momentum SGD for vectors and scalars.

    The trust ratio of a layer is `η |w| / (|g + λw| + ε)`, with the trust coefficient η and the
    weight decay λ, and 1 where a norm is zero. The denominator of the paper is `|g| + λ|w|`; both
    are the same without weight decay.
    """
    assert cfg.momentum is not None  # the schema sets it
    weights = optax.lars(
        lr_schedule,
        cfg.weight_decay,
        trust_coefficient=cfg.trust_coefficient,
        eps=cfg.eps,
        momentum=cfg.momentum,
    )
    others = optax.sgd(lr_schedule, cfg.momentum)
    return optax.partition({"lars": weights, "sgd": others}, partial(optimizer_labels, "lars"))


def optimizer_labels(name: str, params: Any) -> Any:
    """Return the optimizer of each parameter: a tree of labels such as "lamb" and "adam".

    Vectors and scalars (at most one axis is longer than 1: biases, scales of norms, temperatures)
    have neither trust ratio nor weight decay, as in common implementations for BERT. The papers do
    not say so; the norm of a vector that is initialized to zero has no meaning for its step size.

    Args:
        name: Name of the optimizer.
        params: A pytree of parameters, or of their shapes.
    """
    if name == "muadamw":
        return param_labels(params)
    of_vectors = {"lamb": "adam", "lars": "sgd"}.get(name, name)

    def label(leaf: Any) -> str:
        return name if sum(side > 1 for side in leaf.shape) > 1 else of_vectors

    return jax.tree.map(label, params)


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
    main_steps = num_steps - cfg.warmup_steps
    problems = [f"a warm-up of {cfg.warmup_steps} steps"] if main_steps <= 0 else []
    problems += [f"the restart at {restart}" for restart in cfg.restarts if restart >= main_steps]
    if problems:
        raise RecipeError(
            f"{', '.join(problems)} in a stage of {num_steps} steps",
            rule="the warm-up, and the restarts counted from its end, are within the stage",
            location="schedule",
            remedy="shorten the schedule, or make the stage longer",
        )
    main = _main_schedule(cfg, learning_rate, main_steps)
    if not cfg.warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, learning_rate, cfg.warmup_steps)
    return optax.join_schedules([warmup, main], [cfg.warmup_steps])


def _main_schedule(cfg: Schedule, learning_rate: float, num_steps: int) -> optax.Schedule:
    match cfg.name:
        case "constant":
            return optax.constant_schedule(learning_rate)
        case "multistep":
            factors = dict.fromkeys(cfg.milestones, cfg.gamma)
            return optax.piecewise_constant_schedule(learning_rate, factors)
        case "step":
            return optax.exponential_decay(learning_rate, cfg.step_size, cfg.gamma, staircase=True)
        case "cosine":
            return _cosine(cfg, learning_rate, num_steps)


def _cosine(cfg: Schedule, learning_rate: float, num_steps: int) -> optax.Schedule:
    """Return a half cosine down to `end_learning_rate`, and one after every restart."""
    weights = cfg.restart_weights or (1.0,) * (len(cfg.restarts) + 1)
    rates = [weight * learning_rate for weight in weights]
    lengths = np.diff([0, *cfg.restarts, num_steps]).tolist()
    cosines = [
        optax.cosine_decay_schedule(rate, length, alpha=cfg.end_learning_rate / rate)
        for rate, length in zip(rates, lengths, strict=True)
    ]
    return optax.join_schedules(cosines, list(cfg.restarts))
