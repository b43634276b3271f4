"""Entry points by which packages register methods and kernels."""

import difflib
import functools
import os
from collections.abc import Callable
from importlib import metadata
from typing import TypeVar

from esrjax.errors import InvalidArgument, NotFound, PluginError
from esrjax.method import Ensemble, Method

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


# --------------------------------------------------------------------------------------------------
# Registry of methods: entry points of the group `esrjax.methods`.
# --------------------------------------------------------------------------------------------------


METHOD_GROUP = "esrjax.methods"
PLUGINS_ENV = "ESRJAX_PLUGINS"  # names to which discovery is limited, separated by commas


def names() -> tuple[str, ...]:
    """Return the registered names, sorted; no plugin is imported."""
    return tuple(sorted(_entry_points()))


def get_entry(name: str) -> Method | Ensemble:
    """Return the method or ensemble that is registered as `name`.

    Only the package that registers it is imported.

    Raises:
        NotFound: No package registers the name.
        PluginError: Two packages register it.
        PluginError: It cannot be imported, or is neither a `Method` nor an `Ensemble`.
    """
    return _load(_entry_point(name))


def get_method(name: str) -> Method:
    """Return the method that is registered as `name`.

    Raises:
        InvalidArgument: It is an ensemble, which has no network of its own.
        UserError: As `get_entry`.
    """
    entry = get_entry(name)
    if isinstance(entry, Method):
        return entry
    raise InvalidArgument(
        f"{name!r} is an ensemble",
        rule="a method with one network is needed here",
        remedy=f"name one of its members: {', '.join(entry.members)}",
    )


def distribution_of(name: str) -> str:
    """Return the distribution that registers `name`, with its version: `esrjax 0.1.0`."""
    return distribution_name(_entry_point(name))


def _entry_point(name: str) -> metadata.EntryPoint:
    entries = _entry_points().get(name, ())
    match entries:
        case (entry,):
            return entry
        case ():
            raise _unknown(name)
        case _:
            raise _ambiguous(name, entries)


def _entry_points() -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """Return the entry points by name, limited by `PLUGINS_ENV`."""
    setting = os.environ.get(PLUGINS_ENV)
    allowed = None if setting is None else {part.strip() for part in setting.split(",")}
    return {
        name: entries
        for name, entries in entry_points_by_name(METHOD_GROUP).items()
        if allowed is None or name in allowed
    }


@functools.cache
def _load(entry: metadata.EntryPoint) -> Method | Ensemble:
    return load_entry_point(entry, Method | Ensemble, _broken)  # pyright: ignore[reportArgumentType] # a union serves isinstance


def _unknown(name: str) -> NotFound:
    close = difflib.get_close_matches(name, names(), n=1)
    known = ", ".join(names()) or "none"
    restriction = f", limited by {PLUGINS_ENV}" if PLUGINS_ENV in os.environ else ""
    return NotFound(
        f"Unknown method {name!r}",
        rule=f"a method is an entry point of the group {METHOD_GROUP!r}; "
        f"installed{restriction}: {known}",
        remedy=f"did you mean {close[0]!r}?"
        if close
        else "install the package that registers it, or write it: `esrjax method new NAME`",
    )


def _ambiguous(name: str, entries: tuple[metadata.EntryPoint, ...]) -> PluginError:
    return PluginError(
        f"Method {name!r} is registered more than once",
        rule="one package registers a name",
        location=describe_providers(entries),
        remedy="uninstall one of them, or rename its entry point; other methods are not affected",
    )


def _broken(entry: metadata.EntryPoint, reason: str) -> PluginError:
    return PluginError(
        f"Plugin {entry.name!r} cannot be loaded: {reason}",
        rule="its entry point must refer to an esrjax.method.Method or Ensemble",
        location=f"{entry.value}, of {distribution_name(entry)}",
        remedy="repair or uninstall that package; other methods are not affected",
    )


def is_ensemble(name: str) -> bool:
    """Return whether `name` is a registered ensemble."""
    return isinstance(get_entry(name), Ensemble)
