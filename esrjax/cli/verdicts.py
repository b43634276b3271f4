"""Which engine was the faster here: verdicts, and what they hang on, in the user's cache."""

import contextlib
import hashlib
import json
import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from esrjax import cache, registry
from esrjax.contest import clock
from esrjax.memory import large_pages
from esrjax.model import Model
from esrjax.pictures.upscale import Size

TIE = 0.05  # of JAX's time: where less is saved, JAX runs it
LIBRARIES = ("esrjax", "flax", "onnx", "onnxruntime")  # beside those that a machine's facts name

Facts = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """ratio: the time that ONNX Runtime takes for a tile, of JAX's. day: as `2026-11-27`."""

    ratio: float
    day: str

    @property
    def jax(self) -> bool:
        """Whether JAX wins; it does where there is next to no difference."""
        return self.ratio >= 1 - TIE


def facts(model: Model, tile: Size) -> Facts:
    """What a verdict about tiles of this size hangs on. The values of weights do not matter."""
    return {
        "method": model.name,
        "from": registry.origin(model.name),
        "sizes": dict(model.sizes),
        "network": _shape(model.net),
        "tile": tile,
        "machine": clock.machine() | {"cores": _cores()},
        "flags": os.environ.get("XLA_FLAGS", ""),
        "large pages": large_pages(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }


def load(hangs_on: Facts) -> Verdict | None:
    """The verdict that was kept; None where there is none, or none that can be read."""
    try:
        said = json.loads(_path(hangs_on).read_bytes())["verdict"]
        found = Verdict(ratio=float(said["ratio"]), day=str(date.fromisoformat(said["day"])))
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if math.isfinite(found.ratio) and found.ratio > 0 else None


def keep(hangs_on: Facts, verdict: Verdict) -> None:
    """Whole or not at all; where the cache cannot be written to, the next job measures again."""
    path = _path(hangs_on)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    held = {"verdict": asdict(verdict), "hangs on": hangs_on}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(json.dumps(held, indent=2, default=str) + "\n")
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def _path(hangs_on: Facts) -> Path:
    said = json.dumps(hangs_on, sort_keys=True, default=str)
    return cache.folder("engines") / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"


def _shape(net: nnx.Module) -> str:
    """The sha256 of the paths, shapes and types of all arrays of a network."""
    leaves, _ = jax.tree.flatten_with_path(nnx.state(net))
    said = [f"{jax.tree_util.keystr(at)} {leaf.shape} {leaf.dtype}" for at, leaf in leaves]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _cores() -> str:
    """How many this process may use, of how many."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{free} of {os.cpu_count()}"
