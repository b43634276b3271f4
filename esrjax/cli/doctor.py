"""What esrjax runs on."""

import os
import platform
from importlib import metadata

import jax

from esrjax import registry
from esrjax.door import claims
from esrjax.errors import UserError
from esrjax.memory import large_pages
from esrjax.network import ops

LIBRARIES = ("esrjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
EXTRAS = {
    "torch": "torch",
    "export": "onnxruntime",
    "demo": "scikit-image",
    "log": "tensorboardX",
    "clip": "onnxruntime",
    "dev": "chex",
}


def facts() -> dict[str, dict[str, str]]:
    """Groups of named facts: versions, devices, methods, kernels, extras, folders."""
    return {
        "versions": {"python": platform.python_version(), **{n: _version(n) for n in LIBRARIES}},
        "device": _device(),
        "methods": {name: _method(name) for name in registry.names()},
        "kernels": _kernels() or {"none": "every operation runs its reference body"},
        "extras": {extra: _version(library) for extra, library in EXTRAS.items()},
        "folders": {key: os.environ.get(key, "not set") for key in _FOLDERS},
    }


_FOLDERS = ("ESRJAX_REFERENCE", "ESRJAX_DATA", "ESRJAX_PLUGINS", "JAX_COMPILATION_CACHE_DIR")


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device() -> dict[str, str]:
    devices = jax.devices()
    return {
        "platform": jax.default_backend(),
        "devices": ", ".join(device.device_kind for device in devices),
        "matmul precision": str(
            jax.default_matmul_precision.value or "default (TF32 on recent GPUs)"
        ),
        "double precision": "on" if jax.enable_x64.value else "off",
        "memory": "in large pages" if large_pages() else "in pages as the system gives them",
    }


def _method(name: str) -> str:
    try:
        registry.method(name)
    except UserError as error:
        return error.problem
    return registry.origin(name)


def _kernels() -> dict[str, str]:
    """What each installed kernel runs on, and what keeps body "auto" from it here."""
    return {name: _kernel(name) for name in sorted(claims(ops.KERNELS))}


def _kernel(name: str) -> str:
    try:
        kernel = ops.kernel(name)
    except UserError as error:
        return error.problem
    assert kernel is not None  # it is claimed
    return kernel.misplaced() or f"for {kernel.platform}{_held(kernel)}"


def _held(kernel: ops.Kernel) -> str:
    reason = kernel.unproved()
    return "" if reason is None else f"; not by itself: {reason}"
