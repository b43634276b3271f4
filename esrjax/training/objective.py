"""The training objective: the weighted sum of a stage's loss terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from esrjax.network.reparam import deploy
from esrjax.network.resampling import resize_bicubic
from esrjax.training import distillation
from esrjax.training.losses import TERMS
from esrjax.training.recipe import ImageTerm, LossWeight, Stage
from esrjax.training.teacher import Teacher, forward_with_taps

GraphDef = nnx.GraphDef[Any]

# Recipe precision -> jax.default_matmul_precision. For float32 arrays on a GPU "default" may be
# TF32, hence "highest" for fp32; bfloat16 arrays need no more than "default".
_MATMUL = {"fp32": "highest", "tf32": "tensorfloat32", "bf16": "default"}


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """Inputs of the loss terms; images have values in [0, 1].

    Attributes:
        sr: The network's output, `(n, s·h, s·w, 3)`.
        hr: The target, `(n, s·h, s·w, 3)`.
        heads: (weight, image) of each further output.
        teacher_sr: The teacher's output, `(n, s·h, s·w, 3)`.
        feature_pairs: (student, teacher) features of each tap, `(n, h, w, C)` and `(n, h, w, C')`.
        adapters: Kernel `(C, C')` of each tap, None where C = C'.
    """

    sr: Array
    hr: Array
    heads: Sequence[tuple[float, Array]] = ()
    teacher_sr: Array | None = None
    feature_pairs: Sequence[tuple[Array, Array]] = ()
    adapters: Sequence[Array | None] = field(default_factory=list[Array | None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """The loss of one stage as a function of parameters and images.

    Attributes:
        graphdef: Graph definition of the network.
        stage: The stage.
        data_range: Largest input value of the network.
        teacher: The teacher, if the loss has distillation terms.
    """

    graphdef: GraphDef
    stage: Stage
    data_range: float
    teacher: Teacher | None = None

    def __call__(
        self,
        params: Any,
        frozen_and_rest: tuple[Any, Any],
        teacher_state: Any,
        step: Array,
        lr: Array,
        hr: Array,
    ) -> tuple[Array, Any]:
        """Return the loss and the updated non-parameter state (batch statistics, RNG counts).

        Args:
            params: Trained parameters, `{"network", "adapters"}`.
            frozen_and_rest: Parameters that are not trained, and non-parameter state.
            teacher_state: Variables of the teacher.
            step: Step of the stage, for the weights of the terms.
            lr: LR patches (n, h, w, 3), uint8.
            hr: HR patches (n, s·h, s·w, 3), uint8.
        """
        with jax.default_matmul_precision(_MATMUL[self.stage.precision]):
            inputs, rest = self._loss_inputs(params, frozen_and_rest, teacher_state, lr, hr)
        return weighted_sum(self.stage.loss, inputs, step), rest

    def _loss_inputs(
        self,
        params: Any,
        frozen_and_rest: tuple[Any, Any],
        teacher_state: Any,
        lr: Array,
        hr: Array,
    ) -> tuple[LossInputs, Any]:
        stage, teacher = self.stage, self.teacher
        # Also that of the loss, whatever the network computes in.
        dtype = jax.tree.leaves(params)[0].dtype
        frozen, rest = frozen_and_rest
        net = self._compute_network(nnx.merge(self.graphdef, params["network"], frozen, rest))
        # The division of inference (`evaluation.upscale.to_network_input`): a multiplication
        # would round differently.
        x = self._cast_to_compute_dtype(lr.astype(dtype) / (255 / self.data_range))
        # Heads first, then the student's taps: the keys of `teacher.taps`. The teacher's are its
        # values (`Teacher.tap_paths`).
        tap_paths = [*stage.heads, *(stage.teacher.taps if stage.teacher else ())]
        sr, outputs = forward_with_taps(net, x, tap_paths)
        images = [y.astype(dtype) / self.data_range for y in (sr, *outputs[: len(stage.heads)])]
        student_features = [y.astype(dtype) for y in outputs[len(stage.heads) :]]
        inputs = LossInputs(
            sr=images[0],
            hr=hr.astype(dtype) / 255,
            heads=list(zip(stage.heads.values(), images[1:], strict=True)),
            adapters=params["adapters"],
        )
        if teacher is not None:
            teacher_sr, teacher_features = teacher(teacher_state, lr.astype(dtype) / 255)
            pairs = list(zip(student_features, teacher_features, strict=True))
            inputs = replace(inputs, teacher_sr=teacher_sr, feature_pairs=pairs)
        return inputs, nnx.state(net, nnx.Not(nnx.Param))

    def _compute_network(self, net: nnx.Module) -> nnx.Module:
        """Return the network of the forward pass, as a function of the trained parameters.

        With `train_fused`, the branches are fused inside the traced loss. Fusing is linear algebra
        on the kernels and gives the same function of the input, so loss and gradient are those of
        the branches (up to rounding), while images pass through the fused convolutions only.
        """
        graph, weights, rest = nnx.split(
            deploy(net) if self.stage.train_fused else net, nnx.Param, ...
        )
        return nnx.merge(graph, self._cast_to_compute_dtype(weights), rest)

    def _cast_to_compute_dtype(self, tree: Any) -> Any:
        """Cast the leaves of a pytree to the precision of the network's arithmetic."""
        if self.stage.precision != "bf16":
            return tree
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)


def weighted_sum(weights: Mapping[Any, LossWeight], inputs: LossInputs, step: Array) -> Array:
    """Return the sum of the loss terms, each times its weight at `step`.

    Args:
        weights: Term -> weight.
        inputs: Inputs of the terms.
        step: Step of the stage.
    """
    values = (
        _weight_at(weight, step, inputs.sr.dtype) * loss_term(name, inputs)
        for name, weight in weights.items()
    )
    return sum(values, jnp.zeros((), inputs.sr.dtype))


def loss_term(name: str, inputs: LossInputs) -> Array:
    """Return one loss term.

    An image term also includes the heads, compared with HR resized to their size by bicubic.

    Args:
        name: A `LossTerm`.
        inputs: Inputs of the terms.
    """
    if name in get_args(ImageTerm):
        loss = TERMS[name]  # pyright: ignore[reportArgumentType] # it is one of its keys
        heads = [w * loss(y, resize_bicubic(inputs.hr, y.shape[1:3])) for w, y in inputs.heads]
        return sum(heads, loss(inputs.sr, inputs.hr))
    if name in distillation.IMAGE_TERMS:
        assert inputs.teacher_sr is not None  # the schema requires a teacher
        return distillation.IMAGE_TERMS[name](inputs.sr, inputs.teacher_sr)  # pyright: ignore[reportArgumentType]
    student = [pair[0] for pair in inputs.feature_pairs]
    teacher = [pair[1] for pair in inputs.feature_pairs]
    if name == "teacher_affinity":
        return distillation.affinity(student, teacher)
    return distillation.features(student, teacher, inputs.adapters)


def _weight_at(weight: LossWeight, step: Array, dtype: Any) -> Array:
    """Return the weight at a step: linear between breakpoints, constant before and after them."""
    if isinstance(weight, int | float):
        return jnp.asarray(weight, dtype)
    steps, weights = zip(*weight, strict=True)
    return jnp.interp(step.astype(dtype), jnp.asarray(steps, dtype), jnp.asarray(weights, dtype))
