"""The training state, the loss as a function of the parameters, and the training step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax

from esrjax import registry
from esrjax.errors import RecipeError
from esrjax.io import matches_any, unmatched_patterns
from esrjax.nn.compilation import loop_body
from esrjax.nn.functional import resize_bicubic
from esrjax.nn.hooks import forward_with_taps
from esrjax.nn.reparam import deploy
from esrjax.training import losses
from esrjax.training.init_from import GraphDef, Teacher
from esrjax.training.optim import LORA_FACTORS
from esrjax.training.recipe import LossWeight, Stage

# (state, teacher_state, lr, hr) -> (new state, loss)
TrainStepFn = Callable[["TrainState", Any, Array, Array], tuple["TrainState", Array]]

# Recipe precision -> jax.default_matmul_precision. For float32 arrays on a GPU "default" may be
# TF32, hence "highest" for fp32; bfloat16 arrays need no more than "default".
_MATMUL = {"fp32": "highest", "tf32": "tensorfloat32", "bf16": "default"}


# --- state ---


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
        if (best := self.best) is None:
            return self
        score = _scalar_like(best.psnr, psnr)  # compare in the same precision
        is_best = bool(score > best.psnr)
        num_evals = 0 if is_best else int(best.evals_since_best) + 1
        best = replace(best, evals_since_best=_scalar_like(best.evals_since_best, num_evals))
        if is_best:
            weights = None if best.weights is None else _copy(self.eval_params)
            best = replace(best, psnr=score, weights=weights)
        return replace(self, best=best)


def _scalar_like(template: Array, value: float) -> Array:
    """Return a scalar with the dtype and sharding of `template`.

    A state with any other would make the compiled step compile again, or transfer it implicitly,
    which `StageTrainer.train_step` forbids.
    """
    return jax.device_put(jnp.asarray(value, template.dtype), template.sharding)


def _copy(tree: Any) -> Any:
    """Copy arrays of a state that occur in it twice.

    The compiled step has the state donated, and XLA refuses to donate one buffer twice.
    """
    return jax.tree.map(jnp.copy, tree)


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
        RecipeError: A glob of `freeze` or `lora.train` matches nothing, or nothing is left to
            train.
    """
    net.train()
    trainable_paths = _trainable_paths(net, stage)
    graphdef, trainable, frozen, rest = nnx.split(
        net, lambda path, _: _dotted(path) in trainable_paths, nnx.Param, ...
    )
    params = {"network": trainable, "adapters": adapters}
    best = None
    if stage.select == "best" or (stage.validation and stage.validation.patience):
        best = BestWeights(
            weights=_copy(trainable) if stage.select == "best" else None,
            psnr=jnp.full((), -jnp.inf, jnp.float32),
            evals_since_best=jnp.zeros((), jnp.int32),
        )
    state = TrainState(
        params=params,
        frozen=frozen,
        ema=None if stage.ema is None else _copy(trainable),
        opt_state=optimizer.init(params),
        rest=rest,
        best=best,
        step=jnp.zeros((), jnp.int32),
        first_nonfinite_step=jnp.full((), -1, jnp.int32),
    )
    return graphdef, state


def _trainable_paths(net: nnx.Module, stage: Stage) -> set[str]:
    """Return the trained parameters: with LoRA its factors and those of `lora.train`; none frozen.

    In a glob, `*` also matches dots: `block_1.*` covers all levels below `block_1`.
    """
    graph = nnx.iter_graph(net)
    paths = [_dotted(path) for path, leaf in graph if isinstance(leaf, nnx.Param)]
    factors = {path for path in paths if path.split(".")[-1] in LORA_FACTORS}
    others = [path for path in paths if path not in factors]
    trainable = set(paths)
    if stage.lora is not None:
        _check_globs("lora.train", stage.lora.train, others, stage)
        trainable = factors | {path for path in others if matches_any(path, stage.lora.train)}
    _check_globs("freeze", stage.freeze, paths, stage)
    trainable = {path for path in trainable if not matches_any(path, stage.freeze)}
    if not trainable:
        raise _bad_globs("freeze", "no parameter is left to train", paths, stage)
    return trainable


def _check_globs(key: str, globs: Sequence[str], paths: Sequence[str], stage: Stage) -> None:
    """Raise `RecipeError` if a glob matches none of the parameters with these paths."""
    if unmatched := ", ".join(map(repr, unmatched_patterns(globs, paths))):
        raise _bad_globs(key, f"{unmatched} match no parameter", paths, stage)


def _bad_globs(key: str, problem: str, paths: Sequence[str], stage: Stage) -> RecipeError:
    return RecipeError(
        f"{key} of stage {stage.name!r}: {problem}",
        rule=f"{key} contains globs of parameter paths; some parameters are trained",
        location=", ".join(paths[:12]),
        remedy="correct or remove the globs",
    )


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


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


# --- loss ---


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
        self, params: Any, state: TrainState, teacher_state: Any, lr: Array, hr: Array
    ) -> tuple[Array, Any]:
        """Return the loss and the updated non-parameter state (batch statistics, RNG counts).

        An image term also includes the heads, compared with HR resized to their size by bicubic.

        Args:
            params: Trained parameters, `{"network", "adapters"}`, instead of those of `state`.
            state: The training state.
            teacher_state: Variables of the teacher.
            lr: LR patches (n, h, w, 3), uint8.
            hr: HR patches (n, s·h, s·w, 3), uint8.
        """
        dtype = jax.tree.leaves(params)[0].dtype  # of the loss, whatever the network computes in
        with jax.default_matmul_precision(_MATMUL[self.stage.precision]):
            parts = params["network"], state.frozen, state.rest
            # A copy: variables of an outer trace refuse the updates of the forward pass.
            net = nnx.merge(self.graphdef, *parts, copy=True)
            net = self._compute_network(net)
            (sr, *heads), student_features = self._forward(net, lr, dtype)
            teacher_sr: Any = None  # unused without a teacher: the schema requires one
            teacher_features: list[Array] = []
            if self.teacher is not None:
                x = lr.astype(dtype) / 255
                teacher_sr, teacher_features = self.teacher(teacher_state, x)
        hr = hr.astype(dtype) / 255

        def loss_term(name: str) -> Array:
            if name in losses.IMAGE_TERMS:
                return losses.IMAGE_TERMS[name](sr, teacher_sr)
            if name == "teacher_affinity":
                return losses.affinity(student_features, teacher_features)
            if name == "teacher_features":
                return losses.features(student_features, teacher_features, params["adapters"])
            loss: losses.Loss = registry.get_component(registry.LOSS_GROUP, name, "loss", Callable)
            weighted = zip(self.stage.heads.values(), heads, strict=True)
            terms = [w * loss(y, resize_bicubic(hr, y.shape[1:3])) for w, y in weighted]
            return sum(terms, loss(sr, hr))

        terms = [
            _weight_at(weight, state.step, dtype) * loss_term(name)
            for name, weight in self.stage.loss.items()
        ]
        return sum(terms, jnp.zeros((), dtype)), nnx.state(net, nnx.Not(nnx.Param))

    def _compute_network(self, net: nnx.Module) -> nnx.Module:
        """Return the network of the forward pass, as a function of the trained parameters.

        With `train_fused`, the branches are fused inside the traced loss. Fusing is linear algebra
        on the kernels and gives the same function of the input, so loss and gradient are those of
        the branches (up to rounding), while images pass through the fused convolutions only.
        """
        net = deploy(net) if self.stage.train_fused else net
        graph, weights, rest = nnx.split(net, nnx.Param, ...)
        return nnx.merge(graph, self._cast_to_compute_dtype(weights), rest)

    def _forward(self, net: nnx.Module, lr: Array, dtype: Any) -> tuple[list[Array], list[Array]]:
        """Return the images (SR, heads; values in [0, 1]) and the features of the taps."""
        # The division of inference (`evaluation.upscale.to_network_input`): a multiplication
        # would round differently.
        x = self._cast_to_compute_dtype(lr.astype(dtype) / (255 / self.data_range))
        # The student's taps are the keys of `teacher.taps`, the teacher's its values
        # (`Teacher.tap_paths`).
        taps = self.stage.teacher.taps if self.stage.teacher else ()
        sr, outputs = forward_with_taps(net, x, [*self.stage.heads, *taps])
        sr, *outputs = [y.astype(dtype) for y in (sr, *outputs)]
        num_heads = len(self.stage.heads)
        return [y / self.data_range for y in (sr, *outputs[:num_heads])], outputs[num_heads:]

    def _cast_to_compute_dtype(self, tree: Any) -> Any:
        """Cast the leaves of a pytree to the precision of the network's arithmetic."""
        if self.stage.precision != "bf16":
            return tree
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)


def _weight_at(weight: LossWeight, step: Array, dtype: Any) -> Array:
    """Return the weight at a step: linear between breakpoints, constant before and after them."""
    if isinstance(weight, int | float):
        return jnp.asarray(weight, dtype)
    steps, weights = zip(*weight, strict=True)
    return jnp.interp(step.astype(dtype), jnp.asarray(steps, dtype), jnp.asarray(weights, dtype))


# --- training step ---


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

    def loss_fn(params: Any, rest: Any, lr: Array, hr: Array) -> tuple[Array, Any]:
        return objective(params, replace(state, rest=rest), teacher_state, lr, hr)

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    num_micro_batches = objective.stage.grad_accum_steps
    if num_micro_batches == 1:
        (loss, rest), grads = grad_fn(state.params, state.rest, lr, hr)
        return loss, rest, grads

    # Gradient accumulation: the mean of equal micro-batches is the gradient of the whole batch. A
    # scan, unlike an unrolled loop, compiles the micro-batch once and cannot keep the activations
    # of two of them in memory.
    def add(carry: tuple[Any, Any], micro_batch: tuple[Array, Array]) -> tuple[Any, None]:
        with loop_body(True):
            (loss, rest), grads = grad_fn(state.params, carry[0], *micro_batch)
        return (rest, jax.tree.map(jnp.add, carry[1], (loss, grads))), None

    # The objective computes the loss in the dtype of the parameters, and a scan's carry must keep
    # its dtype.
    zero_loss = jnp.zeros((), jax.tree.leaves(state.params)[0].dtype)
    init = (state.rest, (zero_loss, jax.tree.map(jnp.zeros_like, state.params)))
    micro_batches = _micro_batches(lr, num_micro_batches), _micro_batches(hr, num_micro_batches)
    (rest, sums), _ = lax.scan(add, init, micro_batches)
    loss, grads = jax.tree.map(lambda leaf: leaf / num_micro_batches, sums)
    return loss, rest, grads


def _micro_batches(images: Array, num_micro_batches: int) -> Array:
    """Split a batch, `(n, ...) -> (m, n / m, ...)`, every m-th image into one micro-batch.

    Consecutive images are on one device; with a stride, every device works on each micro-batch.
    """
    n, *shape = images.shape
    return images.reshape(n // num_micro_batches, num_micro_batches, *shape).swapaxes(0, 1)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    axis: str | None = None,
    gather: Callable[[Any], Any] = lambda tree: tree,
    shard: Callable[[Any], Any] = lambda tree: tree,
) -> TrainStepFn:
    """Return the training step, to be compiled.

    It takes state, teacher state, LR (n, h, w, 3) and HR (n, s·h, s·w, 3), both uint8, and returns
    the new state and the loss.

    Args:
        objective: The loss.
        optimizer: The optax transformation.
        axis: Name of the `pmap` axis over which gradients are averaged, None under `jit`.
        gather: Applied to the parameters before the forward pass: gathers sharded ones.
        shard: Applied to the gradients, and to the new state: shards them as the state is.
    """

    def train_step(
        state: TrainState, teacher_state: Any, lr: Array, hr: Array
    ) -> tuple[TrainState, Array]:
        whole = replace(state, params=gather(state.params), frozen=gather(state.frozen))
        loss, rest, grads = loss_and_grads(objective, whole, teacher_state, lr, hr)
        grads = shard(grads)
        if axis is not None:
            loss, grads = lax.pmean((loss, grads), axis)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        ema = _update_ema(state, params["network"], objective.stage)
        # Checked on the device and recorded in the state, so that no step waits for the host.
        is_finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        is_first = (state.first_nonfinite_step < 0) & ~is_finite
        new_state = replace(
            state,
            params=params,
            ema=ema,
            opt_state=opt_state,
            rest=rest,
            step=state.step + 1,
            first_nonfinite_step=jnp.where(is_first, state.step, state.first_nonfinite_step),
        )
        return shard(new_state), loss

    return train_step


def _update_ema(state: TrainState, weights: Any, stage: Stage) -> Any:
    """Return the moving average with the weights of one more step; None if the stage has none.

    `state.step` counts the updates before this one: it starts at 0 in every stage and repetition,
    as the average does, and gradient accumulation is inside of a step.
    """
    decay = stage.ema
    if decay is None:
        return None

    def update(average: Array, weight: Array) -> Array:
        step_size = jnp.asarray(1 - decay, weight.dtype)
        if stage.ema_warmup:  # the decay is min(ema, (1 + t) / (10 + t))
            step_size = jnp.maximum(step_size, 9 / (10 + state.step.astype(weight.dtype)))
        # Not ema · average + (1 - ema) · weight: rounded to float32, the two factors do not sum to
        # 1, and with 0.9999 the average of constant weights would end 1.7e-4 too small.
        return average + step_size * (weight - average)

    return jax.tree.map(update, state.ema, weights)
