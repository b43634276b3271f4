"""The door through which packages bring methods and kernels: entry points."""

from collections.abc import Callable
from importlib import metadata
from typing import TypeVar

Kind = TypeVar("Kind")


def claims(group: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """The entry points of a group by name; one distribution seen twice on the path counts once."""
    found: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for entry in metadata.entry_points(group=group):
        found.setdefault(entry.name, {})[distribution(entry), entry.value] = entry
    return {name: tuple(entries.values()) for name, entries in found.items()}


def distribution(entry: metadata.EntryPoint) -> str:
    """The distribution that brings it, and its version: `esrjax 0.1.0`."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def claimants(found: tuple[metadata.EntryPoint, ...]) -> str:
    """Who claims one name, and for what: `a 1.0 (a.net:METHOD) and b 2.0 (b:METHOD)`."""
    return " and ".join(f"{distribution(entry)} ({entry.value})" for entry in found)


def loaded(
    entry: metadata.EntryPoint,
    kind: type[Kind],
    broken: Callable[[metadata.EntryPoint, str], Exception],
) -> Kind:
    """What an entry point names, a `kind`; else the error that `broken(entry, why)` words."""
    try:
        found = entry.load()
    except Exception as error:
        raise broken(entry, f"importing it raised {type(error).__name__}: {error}") from error
    if not isinstance(found, kind):
        raise broken(entry, f"it holds a {type(found).__name__}")
    return found
