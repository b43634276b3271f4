"""The environment that `doctor` reports: versions, devices, methods, kernels, extras, folders."""

import os
import platform
from importlib import metadata

import jax

from esrjax import registry
from esrjax.errors import UserError
from esrjax.nn import ops
from esrjax.registry import entry_points_by_name
from esrjax.runtime import uses_huge_pages

LIBRARIES = ("esrjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
EXTRAS = {  # extra -> the library that shows whether it is installed
    "torch": "torch",
    "export": "onnxruntime",
    "demo": "scikit-image",
    "log": "tensorboardX",
    "clip": "onnxruntime",
    "dev": "pytest",
}
VARIABLES = ("ESRJAX_REFERENCE", "ESRJAX_DATA", "ESRJAX_PLUGINS", "JAX_COMPILATION_CACHE_DIR")


def environment() -> dict[str, dict[str, str]]:
    """Return groups of named facts about this machine and installation."""
    precision = jax.default_matmul_precision.value
    kernels = {name: _kernel(name) for name in sorted(entry_points_by_name(ops.KERNEL_GROUP))}
    return {
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in LIBRARIES}},
        "device": {
            "platform": jax.default_backend(),
            "devices": ", ".join(device.device_kind for device in jax.devices()),
            "matmul precision": str(precision or "default (TF32 on recent GPUs)"),
            "float64": "enabled" if jax.enable_x64.value else "disabled",
            "memory": "huge pages" if uses_huge_pages() else "default page size",
        },
        "methods": {name: _method(name) for name in registry.names()},
        "kernels": kernels or {"none": "every operation runs its reference implementation"},
        "extras": {extra: _version(library) for extra, library in EXTRAS.items()},
        "folders": {key: os.environ.get(key, "not set") for key in VARIABLES},
    }


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _method(name: str) -> str:
    """The distribution of a method, or why the method cannot be used."""
    try:
        registry.get_entry(name)
    except UserError as error:
        return error.problem
    return registry.distribution_of(name)


def _kernel(name: str) -> str:
    """The platform of a kernel, or why the implementation "auto" does not use it."""
    try:
        kernel = ops.find_kernel(name)
    except UserError as error:
        return error.problem
    assert kernel is not None  # it has an entry point
    if reason := kernel.wrong_platform_reason():
        return reason
    reason = kernel.disabled_reason()
    return f"for {kernel.platform}" + (f"; not used by auto: {reason}" if reason else "")
