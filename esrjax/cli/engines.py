"""What runs a method: JAX, or ONNX Runtime where that is faster here."""

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
from esrjax.cli.race import race
from esrjax.cli.verdicts import Facts, Verdict
from esrjax.model import Model, open_model
from esrjax.pictures.jobs import Job
from esrjax.pictures.upscale import Size

EXTRA = ("onnx", "onnxruntime")  # the libraries of the extra `export` that ONNX Runtime takes

# A race is an export and 20 runs of a tile, ten by each engine: where both are as fast it adds a
# third to a job of 64 tiles, once on a machine; the faster engine may save as much of every job.
REPAID = 64 * 256 * 256  # LR pixels
# ONNX Runtime is given an export first, a third of a second that few tiles do not win back.
WORTH = 16 * 256 * 256  # LR pixels


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A method with weights, ready for pictures. said: what runs it, and how that was chosen."""

    net: Any
    said: str


def opened(method: str, files: Mapping[str, Path], given: Mapping[str, Any], engine: str) -> Runner:
    """ONNX Runtime where it is asked for, or given an .onnx file; else JAX, which runs them all."""
    holds_onnx = any(file.suffix == ".onnx" for file in files.values())
    if engine == "jax" and holds_onnx:
        raise BadOption(
            "an .onnx file is given, and --engine jax",
            rule="JAX runs weights (.pth, .safetensors, a run); ONNX Runtime runs .onnx files too",
            remedy="leave --engine out, or give the weights that were exported",
        )
    if engine == "onnxruntime" or holds_onnx:
        from esrjax.bridge import engine as onnxruntime
        from esrjax.bridge.onnx import runtime

        loaded = onnxruntime.load(method, files.get(method), given)
        return Runner(net=loaded, said=f"ONNX Runtime on {runtime.device()}")
    net = open_model(method, files, given)
    return Runner(net=net, said=f"JAX on {jax.default_backend()}")


def fastest(runner: Runner, work: Sequence[Job], passes: int = 1) -> Runner:
    """The faster one for these pictures, by what was measured on this machine, now or before.

    passes: how often each picture is run. JAX stays where it has another device than a CPU, for
    ensembles, where ONNX Runtime is not installed or cannot run the network, and for few pixels.
    """
    model = runner.net
    if not (isinstance(model, Model) and work and jax.default_backend() == "cpu" and installed()):
        return runner
    try:
        return _faster(runner, model, work, passes)
    except Exception as error:  # exporting a network raises almost anything; JAX runs them all
        return _stays(runner, f"cannot run it: {type(error).__name__}")


def installed() -> bool:
    """Whether ONNX Runtime could run a network; nothing of it is imported to know."""
    return all(importlib.util.find_spec(library) for library in EXTRA)


def load_of(work: Sequence[Job]) -> Counter[Size]:
    """How many LR pixels are run in tiles of each size, at least: overlaps are not counted."""
    load: Counter[Size] = Counter()
    for job in work:
        high, wide = job.canvas
        tiles = math.ceil(job.size[0] / high) * math.ceil(job.size[1] / wide)
        load[job.canvas] += tiles * high * wide
    return load


def _faster(runner: Runner, model: Model, work: Sequence[Job], passes: int) -> Runner:
    load = load_of(work)
    if load.total() * passes < WORTH:
        return runner
    tile = load.most_common(1)[0][0]
    hangs_on = verdicts.facts(model, tile)
    kept = verdicts.load(hangs_on)
    if kept is not None:
        rival = None if kept.jax else exported(model)
        return _won(runner, kept, rival, f"measured on {kept.day}")
    if load.total() * passes < REPAID:
        return runner
    return _raced(runner, model, tile, hangs_on)


def _raced(runner: Runner, model: Model, tile: Size, hangs_on: Facts) -> Runner:
    with _saying("which is faster, JAX or ONNX Runtime"):
        rival = exported(model)
        verdict = rival and race(model.upscaler(tile), rival.upscaler(tile), tile)
    if verdict is None:
        return _stays(runner, "makes another picture" if rival else "has another device")
    verdicts.keep(hangs_on, verdict)
    return _won(runner, verdict, rival, "measured now")


def exported(model: Model) -> Any:
    """The network in ONNX Runtime on a CPU; None where that would run elsewhere."""
    from esrjax.bridge import engine
    from esrjax.bridge.onnx import runtime

    return engine.exported(model) if runtime.device() == "cpu" else None


def _won(runner: Runner, verdict: Verdict, rival: Any, when: str) -> Runner:
    ratio = f"{verdict.ratio:.2f}"
    if verdict.jax:
        return _stays(runner, f"takes {ratio} of its time, {when}")
    if rival is None:
        return runner
    return Runner(net=rival, said=f"ONNX Runtime on cpu ({ratio} of the time of JAX, {when})")


def _stays(runner: Runner, why: str) -> Runner:
    """JAX, and what keeps ONNX Runtime from the work."""
    return Runner(net=runner.net, said=f"{runner.said} (ONNX Runtime {why})")


def _saying(title: str) -> contextlib.AbstractContextManager[object]:
    """A line on standard error for as long as something takes, while it is a terminal."""
    console = Console(stderr=True)
    return console.status(title) if console.is_terminal else contextlib.nullcontext()
