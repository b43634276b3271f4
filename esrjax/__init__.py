"""Efficient super-resolution in JAX: plugins, training under jit, parity with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from esrjax.evaluation.score import Scores
    from esrjax.inference import EnsembleModel, Model
    from esrjax.interop.engines import OnnxModel

    __version__: str

__all__ = ["__version__", "evaluate", "load", "methods"]


def __getattr__(name: str) -> str:
    if name == "__version__":  # the one of pyproject.toml; importlib.metadata takes 30 ms to import
        from importlib import metadata

        return metadata.version("esrjax")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def methods() -> tuple[str, ...]:
    """Return the names of all installed methods and ensembles."""
    from esrjax import registry

    return registry.names()


def load(
    name: str | Path | None = None,
    checkpoint: str | Path | Mapping[str, str | Path] | None = None,
    *,
    engine: Literal["auto", "jax", "openvino", "onnxruntime"] = "jax",
    **hparams: Any,
) -> Model | EnsembleModel | OnnxModel:
    """Load a method with its weights, or a checkpoint with its method.

    `load("span")`, `load("span", "mine.pth")` and `load("mine.safetensors")`.

    Args:
        name: Name of an installed method or ensemble; or a checkpoint, whose method is the one in
            its metadata, or else the only one whose network has its tensors.
        checkpoint: A `.pth`, a `.safetensors` or a run directory; of an ensemble, a mapping from
            the names of its members to such files. By default the weights that the method ships.
        engine: What runs the network (`esrjax.interop.engines.open_model`). Only JAX gives a
            `Model`, with the network itself and its gradients; OpenVINO and ONNX Runtime give an
            `OnnxModel`, and `checkpoint` may then be an `.onnx` file.
        **hparams: Arguments of the network, for instance `channels=48`.

    Returns:
        A callable: LR image `(h, w, 3)`, uint8 or floats in [0, 1] -> SR image `(s·h, s·w, 3)`,
        uint8. It also takes batches `(n, h, w, 3)`, PIL images and PyTorch tensors; what it does
        not take it refuses (`esrjax.data.image_arrays`).

    Raises:
        UserError: The method, the checkpoint or a hyperparameter is unknown or does not match.
    """
    from esrjax.inference import open_model

    if checkpoint is None and name is not None and name not in methods() and Path(name).exists():
        name, checkpoint = None, name
    name = None if name is None else str(name)
    if engine == "jax":
        return open_model(name, checkpoint, hparams)
    from esrjax.interop import engines

    return engines.open_model(name, checkpoint, hparams, engine)


def evaluate(
    net: Model | EnsembleModel | OnnxModel | Callable[[Any], Any],
    data: str | Path,
    spec: str = "ntire",
) -> Scores:
    """Return PSNR and SSIM of a network over a dataset.

    Where its LR images come from is logged (the logger "esrjax"), and `lr_source` of the result.

    Args:
        net: As `load` returns, or any function from LR images to SR images in uint8.
        data: Name of a dataset, such as "Set5", or a folder of HR and LR images.
        spec: Name of the metric spec: colour space, border, rounding (`esrjax metrics list`).

    Raises:
        UserError: The dataset or the spec is unknown, or an output has the wrong size.
    """
    from esrjax.data import datasets
    from esrjax.errors import log_note
    from esrjax.evaluation import metrics, score

    pairs = datasets.list_pairs(data, getattr(net, "scale", 4))
    metric_spec = metrics.get_spec(spec)
    log_note(f"{data}: LR: {datasets.lr_source(pairs)}")
    return score.score(score.as_scorable(net, metric_spec), pairs, metric_spec)
