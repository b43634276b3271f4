"""Entry points by which packages register methods and kernels."""

from collections.abc import Callable
from importlib import metadata
from typing import TypeVar

T = TypeVar("T")


def entry_points_by_name(group: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """Return the entry points of a group by name; more than one where packages collide.

    A distribution that is found twice on `sys.path` (an editable install) counts once.
    """
    entries: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for entry in metadata.entry_points(group=group):
        entries.setdefault(entry.name, {})[distribution_name(entry), entry.value] = entry
    return {name: tuple(entries.values()) for name, entries in entries.items()}


def distribution_name(entry: metadata.EntryPoint) -> str:
    """Return the distribution of an entry point, with its version: `esrjax 0.1.0`."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def describe_providers(entries: tuple[metadata.EntryPoint, ...]) -> str:
    """Return a text of who registers a name: `a 1.0 (a.net:METHOD) and b 2.0 (b:METHOD)`."""
    return " and ".join(f"{distribution_name(entry)} ({entry.value})" for entry in entries)


def load_entry_point(
    entry: metadata.EntryPoint,
    expected_type: type[T],
    make_error: Callable[[metadata.EntryPoint, str], Exception],
) -> T:
    """Import the object that an entry point refers to.

    Args:
        entry: The entry point.
        expected_type: The class that the object must be an instance of.
        make_error: Returns the error to raise, from the entry point and a reason.

    Raises:
        Exception: That of `make_error`, if the import fails or the type differs.
    """
    try:
        value = entry.load()
    except Exception as error:
        raise make_error(entry, f"importing it raised {type(error).__name__}: {error}") from error
    if not isinstance(value, expected_type):
        raise make_error(entry, f"it is a {type(value).__name__}")
    return value
