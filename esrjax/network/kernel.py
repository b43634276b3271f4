"""Kernels: faster implementations of ops, which installed packages register as entry points."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import jax
from jax import Array

from esrjax.door import (
    describe_providers,
    distribution_name,
    entry_points_by_name,
    load_entry_point,
)
from esrjax.errors import UserError

KERNEL_GROUP = "esrjax.kernels"  # the group of entry points; a name is that of an op


class AmbiguousKernel(UserError):
    """Raised when two installed packages register a kernel for one op."""


class BrokenKernel(UserError):
    """Raised when the kernel that a package registers cannot be imported."""


def _always_supported(*args: Array) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A faster implementation of one op on one platform.

    Attributes:
        call: Takes the arguments of the op and returns its output.
        platform: "cuda", "tpu" or "cpu".
        unsupported_reason: Takes the arguments of the op (arrays or abstract ones); returns None
            if the kernel can run them on this device, else the reason.
        disabled_reason: Returns None if the kernel was measured to be faster than the reference on
            this device, else the reason why "auto" does not use it though it could run.
        differentiable: Whether `call` has a gradient of its own; otherwise the gradient of the
            reference is used.
    """

    call: Callable[..., Array]
    platform: str = "cuda"
    unsupported_reason: Callable[..., str | None] = _always_supported
    disabled_reason: Callable[[], str | None] = _always_supported
    differentiable: bool = False

    def wrong_platform_reason(self) -> str | None:
        """Return None on the kernel's platform, else a text that names both."""
        current = platform()
        return None if current == self.platform else f"requires {self.platform}, this is {current}"


def platform() -> str:
    """Return the default platform, by the name that kernels use: "cuda", not "gpu"."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


@functools.cache
def find_kernel(name: str) -> Kernel | None:
    """Return the installed kernel of the op `name`, or None.

    Raises:
        AmbiguousKernel: Two packages register one.
        BrokenKernel: It cannot be imported, or is no `Kernel`.
    """
    match entry_points_by_name(KERNEL_GROUP).get(name, ()):
        case ():
            return None
        case (entry,):
            return load_entry_point(entry, Kernel, _broken)
        case entries:
            raise _ambiguous(name, entries)


def _ambiguous(name: str, entries: tuple[metadata.EntryPoint, ...]) -> AmbiguousKernel:
    return AmbiguousKernel(
        f"Op {name!r} has more than one kernel",
        rule="an op has one kernel at most",
        location=describe_providers(entries),
        remedy="uninstall one of them; other ops are not affected, and implementation "
        '"reference" uses no kernel',
    )


def _broken(entry: metadata.EntryPoint, reason: str) -> BrokenKernel:
    return BrokenKernel(
        f"The kernel of op {entry.name!r} cannot be loaded: {reason}",
        rule="its entry point must refer to an esrjax.network.ops.Kernel",
        location=f"{entry.value}, of {distribution_name(entry)}",
        remedy='repair or uninstall that package, or use implementation "reference"',
    )
