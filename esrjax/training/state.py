"""What a training step changes, and the step itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from esrjax.training.losses import Loss

Graph = nnx.GraphDef[Any]
Step = Callable[["State", Array, Array], tuple["State", Array]]  # state, lr, hr -> state, loss


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class State:
    """params: the network's weights. ema: their moving average, None where none is kept.

    optimiser: optax's state. rest: what the network changes by itself. step: within the stage.
    bad: the first step whose loss or gradient was not finite, -1 while there is none.
    """

    params: Any
    ema: Any
    optimiser: Any
    rest: Any
    step: Array
    bad: Array

    @property
    def kept(self) -> Any:
        """The weights to go on with: the average, where there is one."""
        return self.params if self.ema is None else self.ema


def begin(
    net: nnx.Module, optimiser: optax.GradientTransformation, ema: float | None
) -> tuple[Graph, State]:
    """The graph of `net`, and its state before the first step."""
    net.train()
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    state = State(
        params=params,
        ema=None if ema is None else jax.tree.map(jnp.copy, params),
        optimiser=optimiser.init(params),
        rest=rest,
        step=jnp.zeros((), jnp.int32),
        bad=jnp.full((), -1, jnp.int32),
    )
    return graph, state


def network(graph: Graph, state: State) -> nnx.Module:
    """The network with the weights to go on with."""
    return nnx.merge(graph, state.kept, state.rest)


def step(
    graph: Graph,
    optimiser: optax.GradientTransformation,
    loss: Loss,
    *,
    data_range: float,
    ema: float | None,
) -> Step:
    """One step on 8-bit `lr (n, h, w, 3)` and `hr (n, s·h, s·w, 3)`; to be jitted."""

    def objective(params: Any, rest: Any, lr: Array, hr: Array) -> tuple[Array, Any]:
        net = nnx.merge(graph, params, rest)
        sr = net(lr.astype(jnp.float32) / (255 / data_range))  # pyright: ignore[reportCallIssue] # networks are callable
        value = loss(sr / data_range, hr.astype(jnp.float32) / 255)
        return value, nnx.state(net, nnx.Not(nnx.Param))

    def advance(state: State, lr: Array, hr: Array) -> tuple[State, Array]:
        slope = jax.value_and_grad(objective, has_aux=True)
        (value, rest), gradient = slope(state.params, state.rest, lr, hr)
        updates, moments = optimiser.update(gradient, state.optimiser, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        after = replace(
            state,
            params=params,
            ema=None if ema is None else optax.incremental_update(params, state.ema, 1 - ema),
            optimiser=moments,
            rest=rest,
            step=state.step + 1,
            bad=jnp.where((state.bad < 0) & ~finite, state.step, state.bad),
        )
        return after, value

    return advance
