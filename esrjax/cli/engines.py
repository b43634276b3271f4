"""The choice of the inference engine of `upscale`: JAX, or ONNX Runtime where that is faster."""

import contextlib
import importlib.util
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from esrjax.cli import verdicts
from esrjax.cli.options import BadOption
from esrjax.cli.race import compare_engines
from esrjax.cli.verdicts import CacheKey, EngineTiming
from esrjax.evaluation.upscale import ImageSize, UpscaleJob
from esrjax.model import Model, open_model

LIBRARIES = ("onnx", "onnxruntime")  # of the extra `export`, needed for ONNX Runtime

# A comparison is an export and 20 runs of a tile, ten by each engine: where both are equally fast
# it adds a third to a job of 64 tiles, once on a machine; the faster engine may save as much of
# every job.
MIN_PIXELS_TO_MEASURE = 64 * 256 * 256  # LR pixels
# ONNX Runtime needs an export first: a third of a second, which few tiles do not win back.
MIN_PIXELS = 16 * 256 * 256  # LR pixels


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A network with weights in an inference engine.

    Attributes:
        net: The network: a `Model`, an `EnsembleModel` or an ONNX model.
        description: The engine, the device, and how they were chosen.
    """

    net: Any
    description: str


def open_runner(
    method: str, files: Mapping[str, Path], hparams: Mapping[str, Any], engine: str
) -> Runner:
    """Open a method: in ONNX Runtime if requested or if the checkpoint is .onnx, else in JAX."""
    has_onnx_file = any(file.suffix == ".onnx" for file in files.values())
    if engine == "jax" and has_onnx_file:
        raise BadOption(
            "--engine jax cannot run an .onnx file",
            rule="JAX runs .pth and .safetensors files and run directories; ONNX Runtime also "
            "runs .onnx files",
            remedy="leave --engine out, or use the checkpoint that was exported",
        )
    if engine == "onnxruntime" or has_onnx_file:
        from esrjax.bridge import engine as onnxruntime
        from esrjax.bridge.onnx import runtime

        model = onnxruntime.load(method, files.get(method), hparams)
        return Runner(net=model, description=f"ONNX Runtime on {runtime.device()}")
    net = open_model(method, files, hparams)
    return Runner(net=net, description=f"JAX on {jax.default_backend()}")


def fastest_runner(runner: Runner, jobs: Sequence[UpscaleJob], passes: int = 1) -> Runner:
    """Return the faster engine for these images, as measured on this machine now or before.

    JAX is kept on devices other than the CPU, for ensembles, where ONNX Runtime is not installed
    or cannot run the network, and for few pixels.

    Args:
        runner: The network in JAX.
        jobs: The images to upscale.
        passes: How often each image is run: 8 for the x8 self-ensemble.
    """
    model = runner.net
    is_candidate = isinstance(model, Model) and jobs and jax.default_backend() == "cpu"
    if not (is_candidate and is_onnxruntime_installed()):
        return runner
    try:
        return _faster(runner, model, jobs, passes)
    except Exception as error:  # exporting a network raises almost anything; JAX runs them all
        return _keep_jax(runner, f"cannot run it: {type(error).__name__}")


def is_onnxruntime_installed() -> bool:
    """Return whether ONNX Runtime can be imported, without importing it."""
    return all(importlib.util.find_spec(library) for library in LIBRARIES)


def pixels_per_tile_size(jobs: Sequence[UpscaleJob]) -> Counter[ImageSize]:
    """Return the number of LR pixels to run, by tile size; overlaps are not counted."""
    pixels: Counter[ImageSize] = Counter()
    for job in jobs:
        height, width = job.tile_size
        tiles = math.ceil(job.lr_size[0] / height) * math.ceil(job.lr_size[1] / width)
        pixels[job.tile_size] += tiles * height * width
    return pixels


def _faster(runner: Runner, model: Model, jobs: Sequence[UpscaleJob], passes: int) -> Runner:
    pixels = pixels_per_tile_size(jobs)
    if pixels.total() * passes < MIN_PIXELS:
        return runner
    tile_size = pixels.most_common(1)[0][0]
    key = verdicts.cache_key(model, tile_size)
    timing = verdicts.load_timing(key)
    if timing is not None:
        onnx_model = None if timing.is_jax_faster else export_on_cpu(model)
        return _choose(runner, timing, onnx_model, f"measured on {timing.day}")
    if pixels.total() * passes < MIN_PIXELS_TO_MEASURE:
        return runner
    return _measure(runner, model, tile_size, key)


def _measure(runner: Runner, model: Model, tile_size: ImageSize, key: CacheKey) -> Runner:
    with _status("comparing JAX and ONNX Runtime"):
        onnx_model = export_on_cpu(model)
        timing = onnx_model and compare_engines(
            model.upscaler(tile_size), onnx_model.upscaler(tile_size), tile_size
        )
    if timing is None:
        return _keep_jax(runner, "gives a different image" if onnx_model else "has another device")
    verdicts.save_timing(key, timing)
    return _choose(runner, timing, onnx_model, "measured now")


def export_on_cpu(model: Model) -> Any:
    """Return the network in ONNX Runtime on the CPU; None if it would run on another device."""
    from esrjax.bridge import engine
    from esrjax.bridge.onnx import runtime

    return engine.from_model(model) if runtime.device() == "cpu" else None


def _choose(runner: Runner, timing: EngineTiming, onnx_model: Any, measured: str) -> Runner:
    ratio = f"{timing.ratio:.2f}"
    if timing.is_jax_faster:
        return _keep_jax(runner, f"takes {ratio} of its time, {measured}")
    if onnx_model is None:
        return runner
    description = f"ONNX Runtime on cpu ({ratio} of the time of JAX, {measured})"
    return Runner(net=onnx_model, description=description)


def _keep_jax(runner: Runner, reason: str) -> Runner:
    """JAX, with the reason against ONNX Runtime in the description."""
    return Runner(net=runner.net, description=f"{runner.description} (ONNX Runtime {reason})")


def _status(title: str) -> contextlib.AbstractContextManager[object]:
    """A status line on standard error, if that is a terminal."""
    console = Console(stderr=True)
    return console.status(title) if console.is_terminal else contextlib.nullcontext()
