"""Timings of inference engines on this machine, stored in the user's cache."""

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
from esrjax.evaluation.upscale import ImageSize
from esrjax.memory import uses_huge_pages
from esrjax.model import Model

MIN_GAIN = 0.05  # fraction of JAX's time; JAX is kept where ONNX Runtime saves less
LIBRARIES = ("esrjax", "flax", "onnx", "onnxruntime")  # besides those of `machine_info`

CacheKey = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class EngineTiming:
    """The speed of ONNX Runtime relative to JAX.

    Attributes:
        ratio: The time of ONNX Runtime for a tile, divided by that of JAX.
        day: The date of the measurement, such as `2026-11-27`.
    """

    ratio: float
    day: str

    @property
    def is_jax_faster(self) -> bool:
        """Whether JAX is used: it is faster, or there is next to no difference."""
        return self.ratio >= 1 - MIN_GAIN


def cache_key(model: Model, tile_size: ImageSize) -> CacheKey:
    """Return everything that a timing depends on. The values of weights do not matter."""
    return {
        "method": model.name,
        "package": registry.distribution_of(model.name),
        "hparams": dict(model.hparams),
        "network": _shapes_hash(model.net),
        "tile_size": tile_size,
        "machine": clock.machine_info() | {"cores": _cores()},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "huge_pages": uses_huge_pages(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
    }


def load_timing(key: CacheKey) -> EngineTiming | None:
    """Return the stored timing; None where there is none, or none that can be read."""
    try:
        timing = json.loads(_path(key).read_bytes())["timing"]
        timing = EngineTiming(
            ratio=float(timing["ratio"]), day=str(date.fromisoformat(timing["day"]))
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return timing if math.isfinite(timing.ratio) and timing.ratio > 0 else None


def save_timing(key: CacheKey, timing: EngineTiming) -> None:
    """Store a timing atomically; if the cache is not writable, the next job measures again."""
    path = _path(key)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    entry = {"timing": asdict(timing), "key": key}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(entry, indent=2, default=str) + "\n")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _path(key: CacheKey) -> Path:
    text = json.dumps(key, sort_keys=True, default=str)
    return cache.cache_dir("engines") / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _shapes_hash(net: nnx.Module) -> str:
    """The sha256 of the paths, shapes and dtypes of all arrays of a network."""
    leaves, _ = jax.tree.flatten_with_path(nnx.state(net))
    lines = [f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}" for path, leaf in leaves]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _cores() -> str:
    """`4 of 16`: the cores this process may use, and those of the machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} of {os.cpu_count()}"
