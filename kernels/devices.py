"""What is known of the device that these kernels meet, and what has been measured on it.

devices.toml is written by tools/tune.py on a device; one that it does not list is not measured.
"""

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

HOPPER = 9.0  # compute capability: the oldest that Mosaic GPU serves
DTYPES = (jnp.float32, jnp.bfloat16)
COUNTABLE = 2**31  # elements of an array that 32-bit indices reach

Block = Mapping[str, int]  # how much work a program does, by side


def why_not(*arrays: Array) -> str | None:
    """None where device, types and sizes are such as every kernel here takes; else the reason."""
    return _old() or _untyped(*arrays) or _odd_sized(*arrays)


def newer() -> str | None:
    """None on Hopper, or where there is no GPU; later ones lack some of its instructions."""
    capability = _capability()
    same = capability is None or capability.startswith("9.")
    return (
        None if same else f"it is for Hopper (compute capability 9.0) alone, this is {capability}"
    )


def unproved(name: str) -> str | None:
    """None where the kernel `name` was measured on this device and is faster; else the reason."""
    found = measured(name)
    if not found:
        return f"it has not been measured on {_kind()}: tools/tune.py does"
    slow = found["speedup"] <= 1
    return f"it is slower than the reference on {_kind()}" if slow else None


def block(name: str, blocks: Mapping[str, tuple[int, ...]]) -> Block:
    """One of `blocks` for the kernel `name`: the fastest on this device, else the first ones."""
    return {side: measured(name).get(side, sizes[0]) for side, sizes in blocks.items()}


def measured(name: str) -> Mapping[str, Any]:
    """Block and speed-up of the kernel `name` on this device; empty where nobody measured them."""
    return _table().get(name, {}).get(_kind(), {})


@functools.cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    return tomllib.loads(Path(__file__).with_name("devices.toml").read_text())


def _kind() -> str:
    return jax.devices()[0].device_kind


def _old() -> str | None:
    capability = _capability()
    if capability is None:
        return None
    new = capability.replace(".", "", 1).isdigit() and float(capability) >= HOPPER
    return None if new else f"it needs compute capability {HOPPER} (Hopper), this is {capability}"


def _capability() -> str | None:
    """None elsewhere than on a GPU: code for any generation can still be made."""
    if jax.default_backend() != "gpu":
        return None
    return str(getattr(jax.devices()[0], "compute_capability", "unknown"))


def _untyped(*arrays: Array) -> str | None:
    kinds = sorted({str(array.dtype) for array in arrays})
    if len(kinds) > 1:
        return f"it takes arrays of one type, these are {', '.join(kinds)}"
    known = arrays[0].dtype in DTYPES
    return None if known else f"it takes float32 or bfloat16, these are {kinds[0]}"


def _odd_sized(*arrays: Array) -> str | None:
    if any(array.size == 0 for array in arrays):
        return "there is nothing to do"
    large = max(array.size for array in arrays)
    return f"it counts up to 2^31 elements, here are {large}" if large >= COUNTABLE else None
