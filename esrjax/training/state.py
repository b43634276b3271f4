"""What a training step changes, and the step itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax

from esrjax.errors import UserError
from esrjax.training.objective import Objective
from esrjax.training.recipe import Stage

Graph = nnx.GraphDef[Any]
Step = Callable[["State", Any, Array, Array], tuple["State", Array]]  # state, taught, lr, hr

_ADAPTERS = ("lora_A", "lora_B")


class NothingToFreeze(UserError):
    """A glob that matches no weight, or leaves none to train."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Best:
    """The weights that validated best. psnr: theirs, dB. since: scores that were no better."""

    weights: Any
    psnr: Array
    since: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """params: what is trained, `{"network", "adapters"}`. frozen: weights that do not move.

    ema: moving average of the network's, None where none is kept. optimiser: optax's state.
    rest: what the network changes by itself. best: None where nothing asks for it. step: within the
    stage. bad: the first step whose loss or gradient was not finite, -1 while there is none.
    """

    params: Any
    frozen: Any
    ema: Any
    optimiser: Any
    rest: Any
    best: Best | None
    step: Array
    bad: Array

    @property
    def kept(self) -> Any:
        """The trained weights to go on with: the average, where there is one."""
        return self.params["network"] if self.ema is None else self.ema

    def judged(self, psnr: float) -> State:
        """With one more score of the kept weights."""
        if self.best is None:
            return self
        score = _as(self.best.psnr, psnr)  # rounded as the best one was
        if score > self.best.psnr:
            weights = None if self.best.weights is None else jax.tree.map(jnp.copy, self.kept)
            best = Best(weights=weights, psnr=score, since=_as(self.best.since, 0))
        else:
            best = replace(self.best, since=_as(self.best.since, int(self.best.since) + 1))
        return replace(self, best=best)


def _as(like: Array, value: float) -> Array:
    return jax.device_put(jnp.asarray(value, like.dtype), like.sharding)


def begin(
    net: nnx.Module, stage: Stage, optimiser: optax.GradientTransformation, adapters: Any = ()
) -> tuple[Graph, State]:
    """The graph of `net`, and its state before the first step."""
    net.train()
    _require_trainable(net, stage)
    graph, moving, frozen, rest = nnx.split(net, _trainable(stage), nnx.Param, ...)
    params = {"network": moving, "adapters": adapters}
    asked = stage.keep == "best" or (stage.validate and stage.validate.patience)
    state = State(
        params=params,
        frozen=frozen,
        ema=None if stage.ema is None else jax.tree.map(jnp.copy, moving),
        optimiser=optimiser.init(params),
        rest=rest,
        best=_nothing_yet(moving, stage) if asked else None,
        step=jnp.zeros((), jnp.int32),
        bad=jnp.full((), -1, jnp.int32),
    )
    return graph, state


def _nothing_yet(moving: Any, stage: Stage) -> Best:
    weights = jax.tree.map(jnp.copy, moving) if stage.keep == "best" else None
    return Best(
        weights=weights,
        psnr=jnp.full((), -jnp.inf, jnp.float32),
        since=jnp.zeros((), jnp.int32),
    )


def network(graph: Graph, state: State, *, best: bool = False) -> nnx.Module:
    """The network with the weights to go on with, or with those that validated best."""
    weights = state.best.weights if best and state.best is not None else state.kept
    return nnx.merge(graph, weights, state.frozen, state.rest)


def step(
    objective: Objective, optimiser: optax.GradientTransformation, *, axis: str | None = None
) -> Step:
    """One step on 8-bit `lr (n, h, w, 3)` and `hr (n, s·h, s·w, 3)`; to be compiled.

    axis: the mapped axis of devices over which gradients are averaged, where there is one.
    """
    stage = objective.stage

    def advance(state: State, taught: Any, lr: Array, hr: Array) -> tuple[State, Array]:
        value, rest, gradient = slope(objective, state, taught, lr, hr)
        if axis is not None:
            value, gradient = lax.pmean((value, gradient), axis)
        updates, moments = optimiser.update(gradient, state.optimiser, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        after = replace(
            state,
            params=params,
            ema=_averaged(stage.ema, params["network"], state.ema),
            optimiser=moments,
            rest=rest,
            step=state.step + 1,
            bad=jnp.where((state.bad < 0) & ~finite, state.step, state.bad),
        )
        return after, value

    return advance


def slope(
    objective: Objective, state: State, taught: Any, lr: Array, hr: Array
) -> tuple[Array, Any, Any]:
    """Loss, what the network changed by itself, and gradient, over the parts of the batch."""
    derive = jax.value_and_grad(objective, has_aux=True)
    parts = objective.stage.accumulate

    def of(rest: Any, lr: Array, hr: Array) -> tuple[Any, tuple[Array, Any]]:
        (value, rest), gradient = derive(
            state.params, (state.frozen, rest), taught, state.step, lr, hr
        )
        return rest, (value, gradient)

    if parts == 1:
        rest, (value, gradient) = of(state.rest, lr, hr)
        return value, rest, gradient
    nothing = jax.tree.map(jnp.zeros_like, state.params)
    zero = jnp.zeros((), jax.tree.leaves(state.params)[0].dtype)

    def add(sums: tuple[Any, Any], part: tuple[Array, Array]) -> tuple[Any, None]:
        rest, new = of(sums[0], *part)
        return (rest, jax.tree.map(jnp.add, sums[1], new)), None

    start = (state.rest, (zero, nothing))
    (rest, sums), _ = lax.scan(add, start, (_split(lr, parts), _split(hr, parts)))
    value, gradient = jax.tree.map(lambda leaf: leaf / parts, sums)
    return value, rest, gradient


def _split(pictures: Array, parts: int) -> Array:
    """`(n, ...) -> (parts, n / parts, ...)`, each part with pictures of every device."""
    n, *shape = pictures.shape
    return pictures.reshape(n // parts, parts, *shape).swapaxes(0, 1)


def _averaged(decay: float | None, params: Any, ema: Any) -> Any:
    return None if decay is None else optax.incremental_update(params, ema, 1 - decay)


def _trainable(stage: Stage) -> Callable[[tuple[Any, ...], Any], bool]:
    """Which weights move: the adapters alone where there are any, and nothing that is frozen."""

    def moves(path: tuple[Any, ...], value: Any) -> bool:
        name = ".".join(map(str, path))
        chosen = stage.lora is None or str(path[-1]) in _ADAPTERS
        frozen = any(fnmatchcase(name, glob) for glob in stage.freeze)
        return isinstance(value, nnx.Param) and chosen and not frozen

    return moves


def _require_trainable(net: nnx.Module, stage: Stage) -> None:
    """Every glob of `freeze` freezes something, and something is left to train."""
    moves = _trainable(stage)
    weights = {
        ".".join(map(str, path)): (path, leaf)
        for path, leaf in nnx.iter_graph(net)
        if isinstance(leaf, nnx.Param)
    }
    idle = [glob for glob in stage.freeze if not any(fnmatchcase(name, glob) for name in weights)]
    if not idle and any(moves(path, leaf) for path, leaf in weights.values()):
        return
    said = f"{', '.join(map(repr, idle))} match no weight" if idle else "nothing is left to train"
    raise NothingToFreeze(
        f"freeze of stage {stage.name!r}: {said}",
        rule="globs of weights by their paths, and not of all",
        place=", ".join(list(weights)[:12]),
        remedy="correct the globs, or drop them",
    )
