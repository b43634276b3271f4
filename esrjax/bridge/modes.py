"""PyTorch execution modes that `esrjax bench` times: eager, channels-last and torch.compile."""

import copy
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from esrjax.bridge.cpu import wrap_user_errors
from esrjax.bridge.peer import TorchModel, TorchModelMismatch
from esrjax.errors import UserError

TorchMode = Literal["eager", "channels-last", "compiled"]
INDUCTOR_CACHE_VAR = "TORCHINDUCTOR_CACHE_DIR"


class TorchCompileError(UserError):
    """Raised when torch.compile fails, on this machine or for this network."""


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
        TorchCodeError: If the network's code raises an error.
        TorchCompileError: If torch.compile fails.
        TorchModelMismatch: If the output is not `scale` times as large as the input.
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
    _check_output_shape(model, shape, (1, 3, scale * lr.shape[1], scale * lr.shape[2]))
    return call


def _compile(model: TorchModel, module: Any, x: Any) -> Any:
    """Compile for this image size alone, without Inductor's on-disk cache of earlier runs."""
    try:
        with _fresh_inductor_cache(), torch.inference_mode():
            compiled: Any = torch.compile(module, dynamic=False)
            compiled(x)
            return compiled
    except Exception as error:  # no C++ compiler, or any error of Dynamo or Inductor
        message = (str(error).strip() or "no message").splitlines()[0]
        raise TorchCompileError(
            f"torch.compile raised {type(error).__name__}: {message}",
            rule="torch.compile needs a C++ compiler, and code that it can trace",
            location=str(model.source.file),
            remedy="install a compiler, or omit --torch-compile",
        ) from error


@contextmanager
def _fresh_inductor_cache() -> Generator[None]:
    """Use an empty cache folder, or `compile_s` would depend on what ran before."""
    previous = os.environ.get(INDUCTOR_CACHE_VAR)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[INDUCTOR_CACHE_VAR] = folder
        try:
            yield
        finally:
            del os.environ[INDUCTOR_CACHE_VAR]
            if previous is not None:
                os.environ[INDUCTOR_CACHE_VAR] = previous


def _check_output_shape(
    model: TorchModel, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if shape != expected:
        raise TorchModelMismatch(
            f"{model.source.class_name} returns {shape}, expected {expected}",
            rule="both networks upscale an image by the same factor: (N, 3, s·h, s·w)",
            location=str(model.source.file),
            remedy="check the constructor arguments and the scale",
        )
