"""ONNX Runtime sessions, and import of optional libraries."""

import importlib
from pathlib import Path
from typing import Any

from esrjax.errors import MissingExtra


def import_library(library: str, extra: str = "export") -> Any:
    """Import an optional library.

    Args:
        library: Name of its module.
        extra: Extra of esrjax that installs it.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise MissingExtra(
            f"{library} is not installed",
            rule=f"{library} is an optional dependency",
            remedy=f'pip install "esrjax[{extra}]"',
        ) from error


def make_session(model: bytes | str, *, optimized_path: Path | None = None) -> Any:
    """Return a session that runs a model, on CUDA if this build of ONNX Runtime supports it.

    Args:
        model: The serialized model, or the path of its file.
        optimized_path: Where the model is written after basic optimizations; the session then has
            only these, and runs on the CPU, as optimizations for CUDA would be written as well.

    Raises:
        MissingExtra: If onnxruntime is not installed.
    """
    onnxruntime = import_library("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # Threads stop spinning after a run: otherwise they slow down PyTorch or JAX in this process.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = ["CPUExecutionProvider"]
    if optimized_path is not None:
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(optimized_path)
    elif device() == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    return onnxruntime.InferenceSession(model, options, providers=providers)


def device() -> str:
    """Return the device of sessions: "cuda" if this build of ONNX Runtime supports it, or "cpu"."""
    providers = import_library("onnxruntime").get_available_providers()
    return "cuda" if "CUDAExecutionProvider" in providers else "cpu"
