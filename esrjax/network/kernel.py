"""Kernels: faster bodies of operations, from whoever is installed."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata

import jax
from jax import Array

from esrjax.door import claimants, claims, distribution, loaded
from esrjax.errors import UserError

KERNELS = "esrjax.kernels"


class AmbiguousKernel(UserError):
    """Two installed packages bring a kernel for one operation."""


class BrokenKernel(UserError):
    """The package that brings a kernel cannot give it."""


def _fits(*args: Array) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A faster body for one operation on one platform.

    call: takes the operation's arguments. why_not: None where the kernel serves these arguments on
    this device, else the reason. unproved: None where it was found faster on this device, else the
    reason for which "auto" leaves it alone though it serves. differentiable: it brings its own
    gradient; otherwise the reference's is used.
    """

    call: Callable[..., Array]
    platform: str = "cuda"
    why_not: Callable[..., str | None] = _fits
    unproved: Callable[[], str | None] = _fits
    differentiable: bool = False

    def misplaced(self) -> str | None:
        """None on the kernel's platform, else what is here."""
        here = platform()
        return None if here == self.platform else f"it needs {self.platform}, this is {here}"


def platform() -> str:
    """What programs run on by default, as kernels name it."""
    here = jax.default_backend()
    return "cuda" if here == "gpu" else here


@functools.cache
def kernel(name: str) -> Kernel | None:
    """The installed kernel of the operation `name`, if any."""
    match claims(KERNELS).get(name, ()):
        case ():
            return None
        case (entry,):
            return loaded(entry, Kernel, _broken)
        case found:
            raise _ambiguous(name, found)


def _ambiguous(name: str, found: tuple[metadata.EntryPoint, ...]) -> AmbiguousKernel:
    return AmbiguousKernel(
        f"the operation {name!r} has more than one kernel",
        rule="an operation has one kernel at most",
        place=claimants(found),
        remedy='uninstall one of them, or use body "reference"; other operations are not affected',
    )


def _broken(entry: metadata.EntryPoint, what: str) -> BrokenKernel:
    return BrokenKernel(
        f"the kernel of {entry.name!r} cannot be loaded: {what}",
        rule="its entry point must name an esrjax.network.ops.Kernel",
        place=f"{entry.value}, of {distribution(entry)}",
        remedy='mend or uninstall that package, or use body "reference"',
    )
