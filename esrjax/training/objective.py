"""What a step minimises: the weighted terms of a stage."""

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
from esrjax.training.recipe import PictureTerm, Stage, Weight
from esrjax.training.teacher import Teacher, look

Graph = nnx.GraphDef[Any]

_MATMUL = {"fp32": "highest", "tf32": "tensorfloat32", "bf16": "default"}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What the terms see: pictures white at 1, features as they are.

    sr, hr: `(n, s·h, s·w, 3)`. heads: further outputs with their weights. taught: the teacher's
    picture. pairs: features of student and teacher. adapters: kernels between unequal widths.
    """

    sr: Array
    hr: Array
    heads: Sequence[tuple[float, Array]] = ()
    taught: Array | None = None
    pairs: Sequence[tuple[Array, Array]] = ()
    adapters: Sequence[Array | None] = field(default_factory=list[Array | None])


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """The loss of one stage as a function of weights and pictures."""

    graph: Graph
    stage: Stage
    data_range: float
    teacher: Teacher | None = None

    def __call__(
        self, params: Any, fixed: tuple[Any, Any], taught: Any, step: Array, lr: Array, hr: Array
    ) -> tuple[Array, Any]:
        """The loss, and what the network has changed by itself.

        params: what is trained, `{"network", "adapters"}`. fixed: frozen weights, and the rest.
        taught: the teacher's weights. lr, hr: 8 bits.
        """
        with jax.default_matmul_precision(_MATMUL[self.stage.precision]):
            scene, rest = self._scene(params, fixed, taught, lr, hr)
        return total(self.stage.loss, scene, step), rest

    def _scene(
        self, params: Any, fixed: tuple[Any, Any], taught: Any, lr: Array, hr: Array
    ) -> tuple[Scene, Any]:
        stage, teacher = self.stage, self.teacher
        dtype = jax.tree.leaves(params)[0].dtype
        frozen, rest = fixed
        net = self._computing(nnx.merge(self.graph, params["network"], frozen, rest))
        x = self._used(lr.astype(dtype) / (255 / self.data_range))
        parts = [*stage.heads, *(stage.teacher.taps if stage.teacher else ())]
        sr, outputs = look(net, x, parts)
        pictures = [y.astype(dtype) / self.data_range for y in (sr, *outputs[: len(stage.heads)])]
        ours = [y.astype(dtype) for y in outputs[len(stage.heads) :]]
        scene = Scene(
            sr=pictures[0],
            hr=hr.astype(dtype) / 255,
            heads=list(zip(stage.heads.values(), pictures[1:], strict=True)),
            adapters=params["adapters"],
        )
        if teacher is not None:
            theirs, features = teacher(taught, lr.astype(dtype) / 255)
            pairs = list(zip(ours, features, strict=True))
            scene = replace(scene, taught=theirs, pairs=pairs)
        return scene, nnx.state(net, nnx.Not(nnx.Param))

    def _computing(self, net: nnx.Module) -> nnx.Module:
        """The network that the pictures go through, a function of the weights that are trained."""
        graph, weights, rest = nnx.split(deploy(net) if self.stage.fused else net, nnx.Param, ...)
        return nnx.merge(graph, self._used(weights), rest)

    def _used(self, weights: Any) -> Any:
        """Floats in the precision that the network computes in."""
        if self.stage.precision != "bf16":
            return weights
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)


def total(weights: Mapping[Any, Weight], scene: Scene, step: Array) -> Array:
    """The sum of the terms, each times its weight at that step."""
    values = (
        _at(weight, step, scene.sr.dtype) * term(name, scene) for name, weight in weights.items()
    )
    return sum(values, jnp.zeros((), scene.sr.dtype))


def term(name: str, scene: Scene) -> Array:
    """One term. A picture term also counts for the heads, against HR resized to their size."""
    if name in get_args(PictureTerm):
        compare = TERMS[name]  # pyright: ignore[reportArgumentType] # it is one of its keys
        heads = [w * compare(y, resize_bicubic(scene.hr, y.shape[1:3])) for w, y in scene.heads]
        return sum(heads, compare(scene.sr, scene.hr))
    if name in distillation.PICTURES:
        assert scene.taught is not None  # the schema asks for a teacher
        return distillation.PICTURES[name](scene.sr, scene.taught)  # pyright: ignore[reportArgumentType]
    ours, theirs = [pair[0] for pair in scene.pairs], [pair[1] for pair in scene.pairs]
    if name == "teacher_affinity":
        return distillation.affinity(ours, theirs)
    return distillation.features(ours, theirs, scene.adapters)


def _at(weight: Weight, step: Array, dtype: Any) -> Array:
    """The weight at a step: straight lines between knots."""
    if isinstance(weight, int | float):
        return jnp.asarray(weight, dtype)
    steps, weights = zip(*weight, strict=True)
    return jnp.interp(step.astype(dtype), jnp.asarray(steps, dtype), jnp.asarray(weights, dtype))
