"""The optimizer MuAdamW: Muon for matrices, AdamW for all other parameters.

Source: NTIRE 2026 report, VARH-AI, Eq. 13-15.
"""

import math
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from esrjax.training.recipe import Optimizer

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
