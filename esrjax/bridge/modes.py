"""The ways in which PyTorch runs a network: eager, channels-last, compiled."""

import copy
import os
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from esrjax.bridge.cpu import told
from esrjax.bridge.peer import Peer, PeerMismatch
from esrjax.errors import UserError

Mode = Literal["eager", "channels-last", "compiled"]
CACHE = "TORCHINDUCTOR_CACHE_DIR"


class NotCompiled(UserError):
    """torch.compile cannot do its work, on this machine or with this network."""


def ready(peer: Peer, lr: NDArray[np.float32], scale: int, mode: Mode) -> Callable[[], Any]:
    """The network and one picture `(1, h, w, 3)`, run once and ready to run; weights are its own.

    Raises `PeerFailed` where it does not run, `NotCompiled` where it cannot be compiled, and
    `PeerMismatch` where it does not make pictures `scale` times larger.
    """
    layout = torch.channels_last if mode == "channels-last" else torch.contiguous_format
    module = copy.deepcopy(peer.module).to(memory_format=layout)
    given = torch.from_numpy(lr.transpose(0, 3, 1, 2)).contiguous(memory_format=layout)
    if mode == "compiled":
        module = _compiled(peer, module, given)

    def call() -> Any:
        with torch.inference_mode():
            return module(given)

    with told(peer.source.file, "running it"):
        shape = tuple(call().shape)
    _require_shape(peer, shape, (1, 3, scale * lr.shape[1], scale * lr.shape[2]))
    return call


def _compiled(peer: Peer, module: Any, given: Any) -> Any:
    """Compiled for pictures of this size alone, nothing of it taken from an earlier time."""
    try:
        with _empty_cache(), torch.inference_mode():
            compiled: Any = torch.compile(module, dynamic=False)
            compiled(given)
            return compiled
    except Exception as error:  # of a compiler that is missing, or of any of the parts of this one
        first = (str(error).strip() or "nothing said").splitlines()[0]
        raise NotCompiled(
            f"torch.compile raised {type(error).__name__}: {first}",
            rule="torch.compile needs a C++ compiler, and code that it can follow",
            place=str(peer.source.file),
            remedy="install a compiler, or leave --compiled out",
        ) from error


@contextmanager
def _empty_cache() -> Generator[None]:
    before = os.environ.get(CACHE)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            del os.environ[CACHE]
            if before is not None:
                os.environ[CACHE] = before


def _require_shape(peer: Peer, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise PeerMismatch(
            f"{peer.source.name} gives {shape}, not {wanted}",
            rule="both networks make the same picture equally larger: (N, 3, s·h, s·w)",
            place=str(peer.source.file),
            remedy="check what it is built with, and its scale",
        )
