"""Comparison of gradients and of optimizer steps between JAX and PyTorch, in float64.

`jax_*` names values of JAX and optax, `torch_*` those of PyTorch; all are in PyTorch's layout and
under PyTorch's names.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from esrjax.bridge import pytorch
from esrjax.bridge.case import FLOAT64_RTOL, Array, ArrayDiff
from esrjax.bridge.layouts import to_channels_first
from esrjax.bridge.rule import OptimizerPair
from esrjax.network.archive import StateDict
from esrjax.network.compilation import FAST_COMPILE
from esrjax.network.naming import KeyMap
from esrjax.network.weights import named_parameters, to_state_dict

WEIGHT_ROUNDING_RTOL = 8 * float(np.finfo(np.float64).eps)  # of a weight: rounding of `w + update`
GRAD_FLOOR = 1e-3  # of the largest gradient of all: smaller gradients are compared with this


def jax_gradients(
    net: nnx.Module, key_map: KeyMap, x: Array, target: Array
) -> tuple[Array, StateDict]:
    """Return JAX's gradients of the mean squared error with respect to input and weights.

    Args:
        net: The network.
        key_map: Maps nnx paths to PyTorch's names.
        x: LR images `(N, h, w, 3)`.
        target: HR images `(N, 3, H, W)`.

    Returns:
        Gradients of the input `(N, 3, h, w)` and of the weights, in PyTorch's layout and names.
    """
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(params: Any, rest: Any, x: Any, target: Any) -> Any:
        def loss(params: Any, x: Any) -> Any:
            y = nnx.merge(graphdef, params, rest)(x)  # pyright: ignore[reportCallIssue] # networks are callable
            return jnp.square(y - target).mean()

        return jax.grad(loss, argnums=(0, 1))(params, x)

    with jax.default_matmul_precision("highest"):
        params_grad, x_grad = run(params, rest, x, np.moveaxis(target, 1, -1))
    # `rest` (batch statistics) has values here, not gradients; PyTorch has none for them, so that
    # `compare_gradients` skips them.
    return to_channels_first(np.asarray(x_grad)), to_state_dict(
        nnx.merge(graphdef, params_grad, rest), key_map
    )


def compare_gradients(
    jax_grads: tuple[Array, StateDict], torch_grads: tuple[Array, StateDict]
) -> list[ArrayDiff]:
    """Compare the input's gradient, and the gradients of all weights that both sides have.

    Args:
        jax_grads: JAX's gradients of input and weights, from `jax_gradients`.
        torch_grads: PyTorch's, from `pytorch.gradients`.

    Returns:
        The difference of the input's gradient; and, if there are common weights, that of the
        weight with the largest ratio of difference to tolerance.
    """
    torch_x_grad, torch_params_grad = torch_grads
    floor = GRAD_FLOOR * max(
        (np.abs(grad).max() for grad in torch_params_grad.values()), default=0.0
    )
    common = {
        key: (jax_grads[1][key], grad)
        for key, grad in torch_params_grad.items()
        if key in jax_grads[1]
    }
    x_diffs = [_grad_diff("gradient, input", jax_grads[0], torch_x_grad, 0.0)]
    params_diffs = [
        _grad_diff("gradient, weights", *pair, floor, key) for key, pair in common.items()
    ]
    return [*x_diffs, *_worst(params_diffs)]


def trainable_keys(net: nnx.Module, key_map: KeyMap) -> set[str]:
    """Return PyTorch's names of the JAX network's trainable parameters (`nnx.Param`)."""
    return {
        key_map.to_torch(path)
        for path, variable in named_parameters(net)
        if isinstance(variable, nnx.Param)
    }


def compare_optimizer(
    weights: StateDict, grads: StateDict, optimizer: OptimizerPair
) -> list[ArrayDiff]:
    """Compare the weights after the same optimizer steps in optax and `torch.optim`.

    Both sides use the same gradients, so that a wrong gradient is not reported twice.

    Args:
        weights: Weights before the steps, float64, in PyTorch's layout.
        grads: Their gradients; weights without one are skipped.
        optimizer: The optimizer in both frameworks.

    Returns:
        The difference of the weight with the largest ratio of difference to tolerance; an empty
        list if the optimizer updates none of the weights, or this PyTorch does not have it.
    """
    params = {
        key: value
        for key, value in weights.items()
        if key in grads and (value.ndim == 2 or not optimizer.only_2d)
    }
    if not params or not pytorch.has_optimizer(optimizer.torch_name):
        return []
    jax_params = _optax_steps(params, grads, optimizer)
    torch_params = pytorch.optimizer_step(
        optimizer.torch_name, optimizer.torch_kwargs, params, grads, optimizer.grad_scales
    )
    largest_step = max(np.abs(torch_params[key] - params[key]).max() for key in params)
    diffs = [
        ArrayDiff(
            name=f"weights after {optimizer.torch_name}",
            shape=value.shape,
            max_abs_diff=float(np.abs(jax_params[key] - value).max()),
            tolerance=FLOAT64_RTOL * float(largest_step)
            + WEIGHT_ROUNDING_RTOL * float(np.abs(value).max()),
            precision="float64",
            worst_key=key,
        )
        for key, value in torch_params.items()
    ]
    return _worst(diffs)


def _optax_steps(weights: StateDict, grads: StateDict, optimizer: OptimizerPair) -> StateDict:
    """Return the weights after the steps of optax."""
    params: dict[str, Any] = {key: jnp.asarray(value) for key, value in weights.items()}
    update: Any = optimizer.optax_tx.update  # typed as a Protocol over pytrees
    opt_state = optimizer.optax_tx.init(params)
    for scale in optimizer.grad_scales:
        scaled_grads = {key: jnp.asarray(scale * grads[key]) for key in params}
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int and float
            updates, opt_state = update(scaled_grads, opt_state, params)
        params = {key: value + updates[key] for key, value in params.items()}
    return {key: np.asarray(value) for key, value in params.items()}


def _grad_diff(
    name: str, jax_grad: Array, torch_grad: Array, floor: float, worst_key: str | None = None
) -> ArrayDiff:
    return ArrayDiff(
        name=name,
        shape=torch_grad.shape,
        max_abs_diff=float(np.abs(jax_grad - torch_grad).max()),
        tolerance=FLOAT64_RTOL * max(float(np.abs(torch_grad).max()), floor),
        precision="float64",
        worst_key=worst_key,
    )


def _worst(diffs: list[ArrayDiff]) -> list[ArrayDiff]:
    """Return the one with the largest ratio of difference to tolerance; NaN is largest."""

    def ratio(diff: ArrayDiff) -> float:
        value = (
            diff.max_abs_diff / diff.tolerance if diff.tolerance else float(diff.max_abs_diff > 0)
        )
        return np.inf if np.isnan(value) else value

    return [max(diffs, key=ratio)] if diffs else []
