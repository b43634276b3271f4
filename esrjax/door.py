"""The door through which packages bring methods and kernels: entry points."""

from importlib import metadata


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
