"""Requirements of the kernels on device, dtypes and sizes, and the configurations tuned per device.

`devices.toml` is written by tools/tune.py on a device. A device that is not in it is untuned.
"""

import functools
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

HOPPER = 9.0  # compute capability, the lowest that Mosaic GPU supports
DTYPES = (jnp.float32, jnp.bfloat16)
H200_SMS = 132
MAX_ELEMENTS = 2**31  # an array must have fewer: kernels index with 32 bits

Config = Mapping[str, int]  # tile sizes of a kernel by name


def unsupported_reason(*arrays: Array) -> str | None:
    """Return None if every kernel here supports device, dtypes and sizes, else the reason."""
    return _too_old_reason() or _dtype_reason(*arrays) or _size_reason(*arrays)


def not_hopper_reason() -> str | None:
    """Return None on Hopper or without a GPU, else the reason: wgmma exists on Hopper alone."""
    capability = _capability()
    is_hopper = capability is None or capability.startswith("9.")
    return None if is_hopper else f"it needs compute capability 9.x (Hopper), this is {capability}"


def disabled_reason(name: str) -> str | None:
    """Return None if the kernel `name` was tuned here and found faster, else the reason."""
    entry = tuned(name)
    if not entry:
        return f"it has not been tuned on {_device_kind()}: run tools/tune.py"
    is_slower = entry["speedup"] <= 1
    return f"it is slower than the reference on {_device_kind()}" if is_slower else None


def get_config(name: str, config_space: Mapping[str, tuple[int, ...]]) -> Config:
    """Return a configuration for the kernel `name`: the tuned one, else the first choices.

    Args:
        name: Name of the operation.
        config_space: Choices of every tile size of the kernel.
    """
    return {key: tuned(name).get(key, choices[0]) for key, choices in config_space.items()}


def num_sms() -> int:
    """Return the number of streaming multiprocessors; an H200's where there is no GPU."""
    if jax.default_backend() != "gpu":
        return H200_SMS
    return getattr(jax.devices()[0], "core_count", H200_SMS)


def tuned(name: str) -> Mapping[str, Any]:
    """Return the tuned configuration and speed-up of a kernel on this device, or nothing."""
    return _table().get(name, {}).get(_device_kind(), {})


@functools.cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    return tomllib.loads(Path(__file__).with_name("devices.toml").read_text())


def _device_kind() -> str:
    return jax.devices()[0].device_kind


def _too_old_reason() -> str | None:
    capability = _capability()
    if capability is None:
        return None
    is_supported = capability.replace(".", "", 1).isdigit() and float(capability) >= HOPPER
    least = f"{HOPPER} (Hopper) or later"
    return None if is_supported else f"it needs compute capability {least}, this is {capability}"


def _capability() -> str | None:
    """Return the compute capability; None without a GPU, where any code can still be compiled."""
    if jax.default_backend() != "gpu":
        return None
    return str(getattr(jax.devices()[0], "compute_capability", "unknown"))


def _dtype_reason(*arrays: Array) -> str | None:
    dtypes = sorted({str(array.dtype) for array in arrays})
    if len(dtypes) > 1:
        return f"it supports operands of one dtype, not of {', '.join(dtypes)}"
    is_supported = arrays[0].dtype in DTYPES
    return None if is_supported else f"it supports float32 and bfloat16, not {dtypes[0]}"


def _size_reason(*arrays: Array) -> str | None:
    if any(array.size == 0 for array in arrays):
        return "an operand is empty"
    size = max(array.size for array in arrays)
    return f"it supports fewer than 2^31 elements, not {size}" if size >= MAX_ELEMENTS else None
