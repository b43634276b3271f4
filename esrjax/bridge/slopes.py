"""How two networks learn: gradients, and steps of an optimiser."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.bridge import pytorch
from esrjax.bridge.case import EXACT, Array, Case
from esrjax.bridge.layouts import channels_first
from esrjax.bridge.rule import Rule
from esrjax.network.archive import Tensors
from esrjax.network.compilation import QUICK
from esrjax.network.naming import Naming
from esrjax.network.weights import leaves, tensors

ROUNDING = 8 * float(np.finfo(np.float64).eps)  # of a weight, in a step
FLOOR = 1e-3  # of all gradients' largest: a leaf whose own are smaller is judged by this


def gradients(net: nnx.Module, naming: Naming, x: Array, target: Array) -> tuple[Array, Tensors]:
    """Of the mean square distance to `target (N, 3, H, W)`: by the input, and by the weights.

    Both as PyTorch has them.
    """
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params: Any, rest: Any, x: Any, target: Any) -> Any:
        def loss(params: Any, x: Any) -> Any:
            y = nnx.merge(graph, params, rest)(x)  # pyright: ignore[reportCallIssue] # networks are callable
            return jnp.square(y - target).mean()

        return jax.grad(loss, argnums=(0, 1))(params, x)

    with jax.default_matmul_precision("highest"):
        by_weight, by_input = run(params, rest, x, np.moveaxis(target, 1, -1))
    # Statistics are no parameters: they keep their values, and PyTorch gives them no gradient.
    return channels_first(np.asarray(by_input)), tensors(nnx.merge(graph, by_weight, rest), naming)


def compared(ours: tuple[Array, Tensors], theirs: tuple[Array, Tensors]) -> list[Case]:
    """The gradient by the input, and the worst by a weight, of those that both have."""
    by_input, by_weight = theirs
    floor = FLOOR * max((np.abs(slope).max() for slope in by_weight.values()), default=0.0)
    known = {key: (ours[1][key], slope) for key, slope in by_weight.items() if key in ours[1]}
    cases = [_case("gradient, input", ours[0], by_input, 0.0)]
    weights = [_case("gradient, weights", *pair, floor, key) for key, pair in known.items()]
    return [*cases, *_worst(weights)]


def trained(net: nnx.Module, naming: Naming) -> set[str]:
    """PyTorch's names of what our side trains."""
    return {naming.to_torch(path) for path, leaf in leaves(net) if isinstance(leaf, nnx.Param)}


def steps(held: Tensors, slopes: Tensors, rule: Rule) -> list[Case]:
    """The weights `held` after the rule's steps from the gradients `slopes`: the worst of them.

    None where the rule has no leaf to move, or this PyTorch does not have it. All as PyTorch has
    them, in double precision.
    """
    chosen = {
        key: value
        for key, value in held.items()
        if key in slopes and (value.ndim == 2 or not rule.matrices)
    }
    if not chosen or not pytorch.has(rule.theirs):
        return []
    ours = _stepped(chosen, slopes, rule)
    theirs = pytorch.stepped(rule.theirs, rule.said, chosen, slopes, rule.scales)
    largest = max(np.abs(theirs[key] - chosen[key]).max() for key in chosen)
    cases = [
        Case(
            case=f"weights after {rule.theirs}",
            shape=value.shape,
            max_abs=float(np.abs(ours[key] - value).max()),
            allowed=EXACT * float(largest) + ROUNDING * float(np.abs(value).max()),
            precision="float64",
            worst=key,
        )
        for key, value in theirs.items()
    ]
    return _worst(cases)


def _stepped(held: Tensors, slopes: Tensors, rule: Rule) -> Tensors:
    """The weights after the steps of optax."""
    part: dict[str, Any] = {key: jnp.asarray(value) for key, value in held.items()}
    update: Any = rule.ours.update  # trees in, trees like them out
    state = rule.ours.init(part)
    for scale in rule.scales:
        now = {key: jnp.asarray(scale * slopes[key]) for key in part}
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            updates, state = update(now, state, part)
        part = {key: value + updates[key] for key, value in part.items()}
    return {key: np.asarray(value) for key, value in part.items()}


def _case(case: str, ours: Array, theirs: Array, floor: float, worst: str | None = None) -> Case:
    return Case(
        case=case,
        shape=theirs.shape,
        max_abs=float(np.abs(ours - theirs).max()),
        allowed=EXACT * max(float(np.abs(theirs).max()), floor),
        precision="float64",
        worst=worst,
    )


def _worst(cases: list[Case]) -> list[Case]:
    """The one farthest beyond, or nearest to, what it is allowed; NaN is farthest."""

    def share(case: Case) -> float:
        share = case.max_abs / case.allowed if case.allowed else float(case.max_abs > 0)
        return np.inf if np.isnan(share) else share

    return [max(cases, key=share)] if cases else []
