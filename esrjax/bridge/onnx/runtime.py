"""ONNX Runtime: sessions that run a model."""

import importlib
from pathlib import Path
from typing import Any

from esrjax.network.archive import MissingExtra


def require(library: str, extra: str = "export") -> Any:
    """The library, or an error that says with which extra to install it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise MissingExtra(
            f"this needs {library}",
            rule=f"{library} is an optional dependency",
            remedy=f'pip install "esrjax[{extra}]"',
        ) from error


def session(
    model: bytes | str, *, level: str = "ORT_ENABLE_ALL", written: Path | None = None
) -> Any:
    """The model, or the file that holds it, ready to run on the fastest device that is there.

    written: where the optimised model is written; it then runs on the CPU.
    """
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    # Once a run is over its threads leave the cores to others, of PyTorch or JAX for instance.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    providers = ["CPUExecutionProvider"]
    if written is not None:
        options.optimized_model_filepath = str(written)
    elif device() == "cuda":
        providers.insert(0, "CUDAExecutionProvider")
    return runtime.InferenceSession(model, options, providers=providers)


def device() -> str:
    """What sessions run on: cuda where this build of ONNX Runtime knows it, else cpu."""
    known = require("onnxruntime").get_available_providers()
    return "cuda" if "CUDAExecutionProvider" in known else "cpu"
