"""Runs of a PyTorch network: modules, gradients, optimizer steps beside optax, timed modes.

Inputs are images `(N, h, w, C)`, as in JAX. Results are NumPy arrays in PyTorch's layout, but for
`prepare`, whose function `esrjax bench` times. Everything runs on the CPU in the input's precision,
so that no TF32 is involved.
"""

import contextlib
import copy
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray

from esrjax.errors import TorchCompileError, TorchModelError, error_summary
from esrjax.interop.array_diff import (
    FLOAT64_RTOL,
    Array,
    ArrayDiff,
    OptimizerPair,
    max_abs,
    rebuild,
    worst_of_keys,
)
from esrjax.interop.torch_model import CudaToCpu, TorchModel, wrap_user_errors
from esrjax.interop.torch_watch import Exercise, Watch
from esrjax.interop.trace import HookEvent, InOut
from esrjax.nn.checkpoint_io import StateDict

TorchMode = Literal["eager", "channels-last", "compiled"]
INDUCTOR_CACHE_VAR = "TORCHINDUCTOR_CACHE_DIR"
WEIGHT_ROUNDING_RTOL = 8 * float(np.finfo(np.float64).eps)  # of a weight: rounding of `w + update`


def forward(model: TorchModel, x: Array) -> Array:
    """Return the network's output for images.

    Args:
        model: The network.
        x: LR images `(N, h, w, 3)`; the network runs in their precision.

    Returns:
        SR images `(N, 3, s·h, s·w)`.

    Raises:
        TorchModelError: If the network's code raises an error.
    """
    with _prepared_input(model, x) as x_torch, torch.no_grad():
        return _to_numpy(model.module(x_torch))


def record_events(model: TorchModel, x: Array) -> list[HookEvent]:
    """Return the inputs and outputs of every module, in execution order.

    Args:
        model: The network.
        x: LR images `(N, h, w, 3)`; the network runs in their precision.

    Raises:
        TorchModelError: If the network's code raises an error.
    """
    with _prepared_input(model, x) as x_torch, torch.no_grad():
        return _run_with_hooks(model, x_torch, Exercise().watch())[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class TorchRun:
    """Result of one forward and backward pass of a PyTorch network.

    Attributes:
        events: Inputs and outputs of every module, in execution order.
        output: SR images `(N, 3, s·h, s·w)`.
        x_grad: Gradient of the input `(N, 3, h, w)`.
        grads: Gradients of the weights by PyTorch's names. Weights with `requires_grad=False` have
            none, of those that the network does not read in this mode they are zero.
    """

    events: Sequence[HookEvent]
    output: Array
    x_grad: Array
    grads: StateDict


def run(model: TorchModel, x: Array, exercise: Exercise, *, training: bool = False) -> TorchRun:
    """Run the network and compute the gradients of `sum(sin(y))`, y its output.

    Args:
        model: The network. Its mode and buffers are restored.
        x: LR images `(N, h, w, 3)`; the network runs in their precision.
        exercise: Receives what the run has exercised.
        training: Whether the network runs in train mode, with a fixed seed.

    Raises:
        TorchModelError: If the network's code raises an error, or its output has no gradient.
    """
    module = model.module
    with _prepared_input(model, x) as x_torch, _mode(module, training=training, seed=0):
        module.zero_grad()
        x_torch.requires_grad_()
        y, events = _run_with_hooks(model, x_torch * 1, exercise.watch())  # a copy: not a leaf
        torch.sin(y).sum().backward()
        _add_zero_grads(events)
    grads = {
        key: np.zeros(tuple(param.shape)) if param.grad is None else _to_numpy(param.grad)
        for key, param in module.named_parameters()
        if param.requires_grad
    }
    exercise.add_gradients({key: float(np.abs(grad).max()) for key, grad in grads.items()})
    x_grad = np.zeros_like(np.moveaxis(x, -1, 1)) if x_torch.grad is None else x_torch.grad.numpy()
    return TorchRun(events=events, output=_to_numpy(y), x_grad=x_grad, grads=grads)


def is_stochastic(model: TorchModel, x: Array) -> bool:
    """Return whether the network in train mode depends on PyTorch's generator, as of dropout.

    Args:
        model: The network. Its mode and buffers are restored.
        x: LR images `(N, h, w, 3)`.
    """
    outputs: list[Array] = []
    with _prepared_input(model, x) as x_torch, torch.no_grad():
        for seed in (0, 1):
            with _mode(model.module, training=True, seed=seed):
                outputs.append(_to_numpy(model.module(x_torch)))
    return not np.array_equal(outputs[0], outputs[1])


@contextlib.contextmanager
def _mode(module: Any, *, training: bool, seed: int) -> Generator[None]:
    """Context in which a module, else in eval mode, is in train or eval mode with fixed random
    numbers; its buffers are restored.
    """
    buffers = {key: value.clone() for key, value in module.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module.train(training)
        try:
            yield
        finally:
            module.eval()
            for key, value in module.named_buffers():
                value.data.copy_(buffers[key])


def has_optimizer(name: str) -> bool:
    """Return whether this version of PyTorch has the optimizer; `Muon` was added in 2.9."""
    return hasattr(torch.optim, name)


def optimizer_steps(optimizer: OptimizerPair, weights: StateDict, grads: StateDict) -> StateDict:
    """Return the weights after the steps of `torch.optim`.

    Args:
        optimizer: Names the class, its keyword arguments, and the factors of the gradients.
        weights: Weights by name.
        grads: Their gradients.
    """
    params = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in weights.items()}
    cls = getattr(torch.optim, optimizer.torch_name)
    torch_optimizer = cls(params.values(), **optimizer.torch_kwargs)
    for scale in optimizer.grad_scales:
        for key, param in params.items():
            param.grad = torch.tensor(scale * grads[key])
        # Muon orthogonalizes in bfloat16, whose rounding would hide all but gross errors.
        with mock.patch.object(torch.Tensor, "bfloat16", lambda tensor: tensor):
            torch_optimizer.step()
    return {key: _to_numpy(param) for key, param in params.items()}


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
    if not params or not has_optimizer(optimizer.torch_name):
        return []
    jax_params = _optax_steps(params, grads, optimizer)
    torch_params = optimizer_steps(optimizer, params, grads)
    max_step = max(max_abs(torch_params[key] - params[key]) for key in params)
    tolerances = {
        key: FLOAT64_RTOL * max_step + WEIGHT_ROUNDING_RTOL * max_abs(weight)
        for key, weight in torch_params.items()
    }
    name = f"weights after {optimizer.torch_name}"
    return worst_of_keys(name, jax_params, torch_params, tolerances)


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


@contextlib.contextmanager
def _prepared_input(model: TorchModel, x: Array) -> Generator[Any]:
    """Yield the input as a tensor `(N, C, h, w)`, with the network in the same precision."""
    x_torch = torch.tensor(np.moveaxis(x, -1, 1).copy())
    with (
        CudaToCpu(model.source.file, model.notes),
        wrap_user_errors(model.source.file, "Running it"),
    ):
        model.module.to(x_torch.dtype)
        yield x_torch


def _run_with_hooks(model: TorchModel, x: Any, watch: Watch) -> tuple[Any, list[HookEvent]]:
    """Return the output, and inputs and outputs of every module in execution order."""
    events: list[HookEvent] = []
    with contextlib.ExitStack() as hooks:
        for path, module in model.module.named_modules():
            for handle in _add_hooks(path, module, events, watch):
                hooks.enter_context(handle)
        with watch:
            y = model.module(x)
    return y, events


def _add_hooks(path: str, module: Any, events: list[HookEvent], watch: Watch) -> tuple[Any, Any]:
    """Append inputs and outputs of a module's calls to `events`: its floating-point tensors.

    Returns handles of the hooks, contexts at whose end the hooks are removed.
    """
    call_counts = Counter[InOut]()

    def record(io: InOut, values: Any) -> None:
        tensors = [v for v in values if torch.is_tensor(v) and v.ndim and v.is_floating_point()]
        call_counts[io] += 1
        event = HookEvent(
            path=path,
            class_name=type(module).__name__,
            io=io,
            call_index=call_counts[io],
            tensors=tuple(tensors),
            arrays=tuple(map(_to_numpy, tensors)),
        )
        if io == "out":
            watch.exercise.add_output(path or "the network", event.arrays)
            for i, tensor in enumerate(tensors):
                if tensor.requires_grad:
                    tensor.register_hook(partial(_keep_grad, event.grads, i))
        events.append(event)

    def on_input(_: Any, args: Any, kwargs: Any) -> None:
        watch.stack.append(path)
        record("in", (*args, *kwargs.values()))

    def on_output(_: Any, args: Any, output: Any) -> Any:
        watch.stack.pop()
        if not isinstance(output, tuple | list):
            return record("out", (output,))
        # The module may use one of several outputs itself: its gradient is that of an alias, which
        # only others use.
        output = rebuild(output, [v.view_as(v) if torch.is_tensor(v) else v for v in output])
        record("out", output)
        return output

    return (
        module.register_forward_pre_hook(on_input, with_kwargs=True),
        module.register_forward_hook(on_output),
    )


def _add_zero_grads(events: Iterable[HookEvent]) -> None:
    """Store zeros as gradients of outputs that no gradient has reached."""
    for event in events:
        for i, tensor in enumerate(event.tensors if event.io == "out" else ()):
            if tensor.requires_grad:
                event.grads.setdefault(i, np.zeros_like(event.arrays[i]))


def _keep_grad(grads: dict[int, Array], position: int, grad: Any) -> None:
    """Store a gradient. Returns None: a hook's return value would replace the gradient."""
    grads[position] = _to_numpy(grad)


def _to_numpy(tensor: Any) -> Array:
    """Return a copy, since modules that work in place change the outputs of others."""
    return tensor.detach().numpy().copy()


# --- modes that `esrjax bench` times ---


def prepare(
    model: TorchModel, lr: NDArray[np.float32], scale: int, mode: TorchMode
) -> Callable[[], Any]:
    """Return a function that runs the network on one image, after one warm-up call.

    Args:
        model: The network; a copy of it runs, so that its memory format stays as it is.
        lr: LR image `(1, h, w, 3)`, float32.
        scale: Expected scale of the network.
        mode: "eager", "channels-last" (eager, channels-last memory format) or "compiled"
            (torch.compile for this image size alone).

    Returns:
        A function without arguments that returns the network's output `(1, 3, s·h, s·w)`, a
        torch tensor.

    Raises:
        TorchModelError: If the network's code raises an error, or the output is not `scale` times
            as large as the input.
        TorchCompileError: If torch.compile fails.
    """
    memory_format = torch.channels_last if mode == "channels-last" else torch.contiguous_format
    module = copy.deepcopy(model.module).to(memory_format=memory_format)
    x = torch.from_numpy(lr.transpose(0, 3, 1, 2)).contiguous(memory_format=memory_format)
    if mode == "compiled":
        module = _compile(model, module, x)

    def call() -> Any:
        with torch.inference_mode():
            return module(x)

    with wrap_user_errors(model.source.file, "Running it"):
        shape = tuple(call().shape)
    expected = (1, 3, scale * lr.shape[1], scale * lr.shape[2])
    if shape != expected:
        raise TorchModelError(
            f"{model.source.class_name} returns {shape}, expected {expected}",
            rule="both networks upscale an image by the same factor: (N, 3, s·h, s·w)",
            location=str(model.source.file),
            remedy="check the constructor arguments and the scale",
        )
    return call


def _compile(model: TorchModel, module: Any, x: Any) -> Any:
    """Compile for this image size alone, with an empty cache folder.

    With Inductor's cache of earlier runs, `compile_s` would depend on what ran before.
    """
    try:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            mock.patch.dict(os.environ, {INDUCTOR_CACHE_VAR: folder}),
            torch.inference_mode(),
        ):
            compiled: Any = torch.compile(module, dynamic=False)
            compiled(x)
            return compiled
    except Exception as error:  # no C++ compiler, or any error of Dynamo or Inductor
        raise TorchCompileError(
            f"torch.compile raised {error_summary(error)}",
            rule="torch.compile needs a C++ compiler, and code that it can trace",
            location=str(model.source.file),
            remedy="install a compiler, or omit --torch-compile",
        ) from error
