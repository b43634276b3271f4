"""The training objective: the weighted sum of a stage's loss terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax

from esrjax.errors import RecipeError
from esrjax.nn.functional import resize_bicubic
from esrjax.nn.reparam import deploy
from esrjax.training import losses
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
    if name in losses.IMAGE_TERMS:
        assert inputs.teacher_sr is not None  # the schema requires a teacher
        return losses.IMAGE_TERMS[name](inputs.sr, inputs.teacher_sr)  # pyright: ignore[reportArgumentType]
    student = [pair[0] for pair in inputs.feature_pairs]
    teacher = [pair[1] for pair in inputs.feature_pairs]
    if name == "teacher_affinity":
        return losses.affinity(student, teacher)
    return losses.features(student, teacher, inputs.adapters)


def _weight_at(weight: LossWeight, step: Array, dtype: Any) -> Array:
    """Return the weight at a step: linear between breakpoints, constant before and after them."""
    if isinstance(weight, int | float):
        return jnp.asarray(weight, dtype)
    steps, weights = zip(*weight, strict=True)
    return jnp.interp(step.astype(dtype), jnp.asarray(steps, dtype), jnp.asarray(weights, dtype))


# --------------------------------------------------------------------------------------------------
# Training state and training step.
# --------------------------------------------------------------------------------------------------


# (state, teacher_state, lr, hr) -> (new state, loss)
TrainStepFn = Callable[["TrainState", Any, Array, Array], tuple["TrainState", Array]]

_ADAPTERS = ("lora_A", "lora_B")  # parameters of `nn.lora.LoRAConv2d`


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class BestWeights:
    """Best validation score so far, and its weights.

    Attributes:
        weights: Trained network parameters, None unless the stage selects "best".
        psnr: Their PSNR, dB; -inf before the first validation.
        evals_since_best: Validations since then without improvement.
    """

    weights: Any
    psnr: Array
    evals_since_best: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a training step changes; a checkpoint of it makes resuming bit-exact.

    Attributes:
        params: Trained parameters, `{"network", "adapters"}`; the adapters are the 1x1 kernels of
            the `teacher_features` term (LoRA factors belong to the network).
        frozen: Parameters that are not trained.
        ema: Exponential moving average of `params["network"]`, None if the stage has none.
        opt_state: State of the optax optimizer.
        rest: Non-parameter state of the network (batch statistics, RNG counts).
        best: Best validation, None if the stage needs none.
        step: Steps done in the stage.
        first_nonfinite_step: First step whose loss or gradient was not finite, -1 if there is none.
    """

    params: Any
    frozen: Any
    ema: Any
    opt_state: Any
    rest: Any
    best: BestWeights | None
    step: Array
    first_nonfinite_step: Array

    @property
    def eval_params(self) -> Any:
        """The parameters to evaluate and export: the moving average if there is one."""
        return self.params["network"] if self.ema is None else self.ema

    def with_score(self, psnr: float) -> TrainState:
        """Return the state updated by a validation PSNR, in dB, of `eval_params`."""
        if self.best is None:
            return self
        score = _scalar_like(self.best.psnr, psnr)  # compare in the same precision
        if score > self.best.psnr:
            # A copy, as in `init_state`: the state is donated, so no buffer may be in it twice.
            weights = (
                None if self.best.weights is None else jax.tree.map(jnp.copy, self.eval_params)
            )
            best = BestWeights(
                weights=weights,
                psnr=score,
                evals_since_best=_scalar_like(self.best.evals_since_best, 0),
            )
        else:
            best = replace(
                self.best,
                evals_since_best=_scalar_like(
                    self.best.evals_since_best, int(self.best.evals_since_best) + 1
                ),
            )
        return replace(self, best=best)


def _scalar_like(template: Array, value: float) -> Array:
    """Return a scalar with the dtype and sharding of `template`.

    A state with any other would make the compiled step compile again, or transfer it implicitly,
    which `StageTrainer.train_step` forbids.
    """
    return jax.device_put(jnp.asarray(value, template.dtype), template.sharding)


def init_state(
    net: nnx.Module, stage: Stage, optimizer: optax.GradientTransformation, adapters: Any = ()
) -> tuple[GraphDef, TrainState]:
    """Return the graph definition of a network, and the initial training state.

    Args:
        net: The network; it is set to training mode.
        stage: The stage.
        optimizer: The optax transformation.
        adapters: Trained kernels of the `teacher_features` term, or ().

    Raises:
        RecipeError: A glob of `freeze` matches nothing, or nothing is left to train.
    """
    net.train()
    _check_trainable(net, stage)
    graphdef, trainable, frozen, rest = nnx.split(net, _is_trainable_fn(stage), nnx.Param, ...)
    params = {"network": trainable, "adapters": adapters}
    needs_best = stage.select == "best" or (stage.validation and stage.validation.patience)
    # Copies, here and in `_init_best`: the compiled step has the state donated, and XLA refuses to
    # donate one buffer twice.
    state = TrainState(
        params=params,
        frozen=frozen,
        ema=None if stage.ema is None else jax.tree.map(jnp.copy, trainable),
        opt_state=optimizer.init(params),
        rest=rest,
        best=_init_best(trainable, stage) if needs_best else None,
        step=jnp.zeros((), jnp.int32),
        first_nonfinite_step=jnp.full((), -1, jnp.int32),
    )
    return graphdef, state


def _init_best(trainable: Any, stage: Stage) -> BestWeights:
    weights = jax.tree.map(jnp.copy, trainable) if stage.select == "best" else None
    return BestWeights(
        weights=weights,
        psnr=jnp.full((), -jnp.inf, jnp.float32),
        evals_since_best=jnp.zeros((), jnp.int32),
    )


def merge_network(graphdef: GraphDef, state: TrainState, *, best: bool = False) -> nnx.Module:
    """Return the network of a training state, in training mode.

    Args:
        graphdef: Graph definition of the network.
        state: The training state.
        best: Whether to use the weights with the best validation instead of `eval_params`; only for
            a stage that selects "best".
    """
    weights = state.best.weights if best and state.best is not None else state.eval_params
    return nnx.merge(graphdef, weights, state.frozen, state.rest)


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, *, axis: str | None = None
) -> TrainStepFn:
    """Return the training step, to be compiled.

    It takes state, teacher state, LR (n, h, w, 3) and HR (n, s·h, s·w, 3), both uint8, and returns
    the new state and the loss.

    Args:
        objective: The loss.
        optimizer: The optax transformation.
        axis: Name of the `pmap` axis over which gradients are averaged, None under `jit`.
    """
    stage = objective.stage

    def train_step(
        state: TrainState, teacher_state: Any, lr: Array, hr: Array
    ) -> tuple[TrainState, Array]:
        loss, rest, grads = loss_and_grads(objective, state, teacher_state, lr, hr)
        if axis is not None:
            loss, grads = lax.pmean((loss, grads), axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        # Checked on the device and recorded in the state, so that no step waits for the host.
        is_finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        new_state = replace(
            state,
            params=params,
            ema=_update_ema(stage.ema, params["network"], state.ema),
            opt_state=opt_state,
            rest=rest,
            step=state.step + 1,
            first_nonfinite_step=jnp.where(
                (state.first_nonfinite_step < 0) & ~is_finite,
                state.step,
                state.first_nonfinite_step,
            ),
        )
        return new_state, loss

    return train_step


def loss_and_grads(
    objective: Objective, state: TrainState, teacher_state: Any, lr: Array, hr: Array
) -> tuple[Array, Any, Any]:
    """Return loss, updated non-parameter state and gradients.

    Loss and gradients are means over the micro-batches; the non-parameter state passes through them
    one after another.

    Args:
        objective: The loss.
        state: The training state.
        teacher_state: Variables of the teacher.
        lr: LR patches (n, h, w, 3), uint8.
        hr: HR patches (n, s·h, s·w, 3), uint8.
    """
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    num_micro_batches = objective.stage.grad_accum_steps

    def micro_batch_grads(rest: Any, lr: Array, hr: Array) -> tuple[Any, tuple[Array, Any]]:
        (loss, rest), grads = value_and_grad(
            state.params, (state.frozen, rest), teacher_state, state.step, lr, hr
        )
        return rest, (loss, grads)

    if num_micro_batches == 1:
        rest, (loss, grads) = micro_batch_grads(state.rest, lr, hr)
        return loss, rest, grads
    zero_grads = jax.tree.map(jnp.zeros_like, state.params)
    # The objective computes the loss in the dtype of the parameters, and a scan's carry must keep
    # its dtype.
    zero_loss = jnp.zeros((), jax.tree.leaves(state.params)[0].dtype)

    def add(sums: tuple[Any, Any], micro_batch: tuple[Array, Array]) -> tuple[Any, None]:
        rest, addends = micro_batch_grads(sums[0], *micro_batch)
        return (rest, jax.tree.map(jnp.add, sums[1], addends)), None

    # Gradient accumulation. A scan, unlike an unrolled loop, compiles the micro-batch once and
    # cannot keep the activations of two of them in memory. The mean of equal micro-batches is the
    # gradient of the whole batch.
    init = (state.rest, (zero_loss, zero_grads))
    (rest, sums), _ = lax.scan(
        add, init, (_micro_batches(lr, num_micro_batches), _micro_batches(hr, num_micro_batches))
    )
    loss, grads = jax.tree.map(lambda leaf: leaf / num_micro_batches, sums)
    return loss, rest, grads


def _micro_batches(images: Array, num_micro_batches: int) -> Array:
    """Split a batch, `(n, ...) -> (m, n / m, ...)`, every m-th image into one micro-batch.

    Consecutive images are on one device; with a stride, every device works on each micro-batch.
    """
    n, *shape = images.shape
    return images.reshape(n // num_micro_batches, num_micro_batches, *shape).swapaxes(0, 1)


def _update_ema(decay: float | None, params: Any, ema: Any) -> Any:
    """Return `decay · ema + (1 - decay) · params`; optax takes the weight of the new values."""
    return None if decay is None else optax.incremental_update(params, ema, 1 - decay)


def _is_trainable_fn(stage: Stage) -> Callable[[tuple[Any, ...], Any], bool]:
    """Return a filter of the trained variables: LoRA factors alone if there are any, none frozen.

    In a glob of `freeze`, `*` also matches dots: `block_1.*` covers all levels below `block_1`.
    """

    def is_trainable(path: tuple[Any, ...], value: Any) -> bool:
        name = ".".join(map(str, path))
        is_target = stage.lora is None or str(path[-1]) in _ADAPTERS
        is_frozen = any(fnmatchcase(name, glob) for glob in stage.freeze)
        return isinstance(value, nnx.Param) and is_target and not is_frozen

    return is_trainable


def _check_trainable(net: nnx.Module, stage: Stage) -> None:
    """Check that every glob of `freeze` matches a parameter, and that some are left to train."""
    is_trainable = _is_trainable_fn(stage)
    params = {
        ".".join(map(str, path)): (path, leaf)
        for path, leaf in nnx.iter_graph(net)
        if isinstance(leaf, nnx.Param)
    }
    unmatched = [
        glob for glob in stage.freeze if not any(fnmatchcase(name, glob) for name in params)
    ]
    if not unmatched and any(is_trainable(path, leaf) for path, leaf in params.values()):
        return
    problem = (
        f"{', '.join(map(repr, unmatched))} match no parameter"
        if unmatched
        else "no parameter is left to train"
    )
    raise RecipeError(
        f"freeze of stage {stage.name!r}: {problem}",
        rule="freeze contains globs of parameter paths, and leaves some parameters to train",
        location=", ".join(list(params)[:12]),
        remedy="correct or remove the globs",
    )
