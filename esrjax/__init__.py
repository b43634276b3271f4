"""Efficient super-resolution in JAX: plugins, training under jit, parity with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esrjax.model import Fusion, Model
    from esrjax.pictures.score import Scores

__all__ = ["evaluate", "load", "methods"]


def methods() -> tuple[str, ...]:
    """The names of all installed methods."""
    from esrjax import registry

    return registry.names()


def load(
    name: str, checkpoint: str | Path | Mapping[str, str | Path] | None = None, **sizes: Any
) -> Model | Fusion:
    """The method `name` with the weights of `checkpoint` (.pth, .safetensors, run directory).

    Without a checkpoint, with the weights that it ships; for an ensemble, checkpoints by the names
    of its members. `sizes` are the network's own, for instance `channels=48`. Called on
    `(h, w, 3)` bytes it gives `(s·h, s·w, 3)` bytes.
    """
    from esrjax.model import open_model

    return open_model(name, checkpoint, sizes)


def evaluate(
    net: Model | Fusion | Callable[[Any], Any], data: str | Path, spec: str = "ntire"
) -> Scores:
    """PSNR and SSIM of `net` over a set: a name such as "Set5", or a folder of pairs.

    `net` is what `load` gives, or any function from LR bytes to SR bytes.
    """
    from esrjax.pictures import score, sets, specs

    pairs = sets.select(data, getattr(net, "scale", 4))
    said = specs.named(spec)
    return score.score(score.seen(net, said), pairs, said)
