"""MuAdamW: what is a matrix moves by Muon, all else by AdamW (NTIRE 2026 report, VARH-AI)."""

import math
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers

from esrjax.training.recipe import Optimiser

Kind = Literal["muon", "adamw"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c of X <- aX + (bA + cA²)X, A = XXᵀ
ITERATIONS = 5

_FACTOR = MuonDimensionNumbers(reduction_axis=1, output_axis=0)  # rows are outputs
_FACTORS = ("lora_A", "lora_B")


def muadamw(said: Optimiser, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon at `rate · muon_lr / lr`, AdamW at `rate`; both shrink by `1 - rate · weight_decay`.

    Source: Eq. 13-15. What the report leaves unsaid is as in `optax.contrib.muon`: the gradient is
    scaled by its Frobenius norm, the Nesterov average is bias-corrected, and the step is times
    `√max(1, out / in)`. Tensors of two axes and more that are no matrices are left to AdamW.
    """
    assert said.muon_lr is not None  # the schema asks for it
    ratio = said.muon_lr / said.lr
    matrices = optax.contrib.muon(
        lambda step: ratio * rate(step),
        ns_coeffs=COEFFICIENTS,
        ns_steps=ITERATIONS,
        beta=said.momentum,
        weight_decay=said.weight_decay / ratio,  # Eq. 15 decays by AdamW's rate, not by Muon's
        muon_weight_dimension_numbers=_dimensions,
    )
    # optax's own branch for all else takes Nesterov's momentum, which AdamW has not
    others = optax.adamw(rate, said.b1, said.b2, said.eps, weight_decay=said.weight_decay)
    return optax.partition({"muon": matrices, "adamw": others}, kinds)


def kinds(params: Any) -> Any:
    """Which of the two moves each leaf: a tree like `params` of "muon" and "adamw".

    Matrices are LoRA's factors, linears `(in, out)`, and kernels `(kh, kw, in / groups, out)` read
    as `(kh·kw·in / groups, out)`, by the names of their leaves. Depthwise kernels are none, nor is
    a matrix of one row or column; of other grouped kernels, whose groups a leaf does not tell, all
    groups are one matrix.
    """

    def kind(path: Any, leaf: Any) -> Kind:
        return "adamw" if _matrix(path, leaf) is None else "muon"

    return jax.tree_util.tree_map_with_path(kind, params)


def _dimensions(params: Any) -> Any:
    """How each leaf is read as a matrix; `params` holds nothing but matrices."""
    return jax.tree_util.tree_map_with_path(_matrix, params)


def _matrix(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
    """Which axes are columns and rows of the matrix that a leaf is, None where it is none."""
    words = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value").split(".")
    name, holder, shape = words[-1], ".".join(words[-2:-1]), leaf.shape
    if len(shape) < 2 or 1 in (math.prod(shape[:-1]), shape[-1]):
        return None
    if name in _FACTORS:
        return _FACTOR
    depthwise, table = len(shape) > 2 and shape[-2] == 1, holder.startswith("embedding")
    if name != "weight" or depthwise or table:
        return None
    return MuonDimensionNumbers(tuple(range(len(shape) - 1)), len(shape) - 1)
