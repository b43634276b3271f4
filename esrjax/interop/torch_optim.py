"""Runs of a PyTorch network: forward pass, module trace, gradients, optimizer steps, timed modes.

Inputs are images `(N, h, w, C)`, as in JAX. Results are NumPy arrays in PyTorch's layout, but for
`prepare`, whose function `esrjax bench` times. Everything runs on the CPU in the input's precision,
so that no TF32 is involved.
"""

import contextlib
import copy
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any, Literal
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from esrjax.errors import TorchCompileError, TorchModelError, error_summary
from esrjax.interop.array_diff import Array, OptimizerPair
from esrjax.interop.torch_model import CudaToCpu, TorchModel, wrap_user_errors
from esrjax.interop.trace import HookEvent, InOut
from esrjax.nn.checkpoint_io import StateDict

TorchMode = Literal["eager", "channels-last", "compiled"]
INDUCTOR_CACHE_VAR = "TORCHINDUCTOR_CACHE_DIR"


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
    events: list[HookEvent] = []
    with contextlib.ExitStack() as hooks, _prepared_input(model, x) as x_torch, torch.no_grad():
        for path, module in model.module.named_modules():
            for handle in _add_hooks(path, module, events):
                hooks.enter_context(handle)
        model.module(x_torch)
    return events


def gradients(model: TorchModel, x: Array, target: Array) -> tuple[Array, StateDict]:
    """Return the gradients of the mean squared error with respect to input and weights.

    Args:
        model: The network.
        x: LR images `(N, h, w, 3)`; the network runs in their precision.
        target: HR images `(N, 3, H, W)`.

    Returns:
        Gradients of the input `(N, 3, h, w)` and of the weights, by PyTorch's names. Weights with
        `requires_grad=False`, or that the network does not read in eval mode, have none.
    """
    with _prepared_input(model, x) as x_torch:
        x_torch.requires_grad_()
        model.module.zero_grad()
        (model.module(x_torch) - torch.from_numpy(target)).square().mean().backward()
        params = model.module.named_parameters()
        grads = {key: _to_numpy(param.grad) for key, param in params if param.grad is not None}
        return _to_numpy(x_torch.grad), grads


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


def _add_hooks(path: str, module: Any, events: list[HookEvent]) -> tuple[Any, Any]:
    """Append inputs and outputs of a module's calls to `events`: its floating-point tensors.

    Returns handles of the hooks, contexts at whose end the hooks are removed.
    """
    call_counts = Counter[InOut]()

    def record(io: InOut, values: Any) -> None:
        tensors = [v for v in values if torch.is_tensor(v) and v.ndim and v.is_floating_point()]
        call_counts[io] += 1
        events.append(
            HookEvent(
                path=path,
                class_name=type(module).__name__,
                io=io,
                call_index=call_counts[io],
                tensors=tuple(tensors),
                arrays=tuple(map(_to_numpy, tensors)),
            )
        )

    def on_input(_: Any, args: Any, kwargs: Any) -> None:
        record("in", (*args, *kwargs.values()))

    def on_output(_: Any, args: Any, output: Any) -> None:
        record("out", output if isinstance(output, tuple | list) else (output,))

    return (
        module.register_forward_pre_hook(on_input, with_kwargs=True),
        module.register_forward_hook(on_output),
    )


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
