"""Registry of methods: entry points of the group `esrjax.methods`."""

import difflib
import functools
import os
from importlib import metadata

from esrjax.door import (
    describe_providers,
    distribution_name,
    entry_points_by_name,
    load_entry_point,
)
from esrjax.errors import UserError
from esrjax.method import Ensemble, Method

METHOD_GROUP = "esrjax.methods"
PLUGINS_ENV = "ESRJAX_PLUGINS"  # names to which discovery is limited, separated by commas


class UnknownMethod(UserError):
    """Raised when no installed package registers a name."""


class AmbiguousMethod(UserError):
    """Raised when two installed packages register one name."""


class EnsembleNotSupported(UserError):
    """Raised when an ensemble is named where one method is needed."""


class BrokenPlugin(UserError):
    """Raised when the method that a package registers cannot be imported."""


def names() -> tuple[str, ...]:
    """Return the registered names, sorted; no plugin is imported."""
    return tuple(sorted(_entry_points()))


def get_entry(name: str) -> Method | Ensemble:
    """Return the method or ensemble that is registered as `name`.

    Only the package that registers it is imported.

    Raises:
        UnknownMethod: No package registers the name.
        AmbiguousMethod: Two packages register it.
        BrokenPlugin: It cannot be imported, or is neither a `Method` nor an `Ensemble`.
    """
    return _load(_entry_point(name))


def get_method(name: str) -> Method:
    """Return the method that is registered as `name`.

    Raises:
        EnsembleNotSupported: It is an ensemble, which has no network of its own.
        UserError: As `get_entry`.
    """
    entry = get_entry(name)
    if isinstance(entry, Method):
        return entry
    raise EnsembleNotSupported(
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


def _unknown(name: str) -> UnknownMethod:
    close = difflib.get_close_matches(name, names(), n=1)
    known = ", ".join(names()) or "none"
    restriction = f", limited by {PLUGINS_ENV}" if PLUGINS_ENV in os.environ else ""
    return UnknownMethod(
        f"Unknown method {name!r}",
        rule=f"a method is an entry point of the group {METHOD_GROUP!r}; "
        f"installed{restriction}: {known}",
        remedy=f"did you mean {close[0]!r}?"
        if close
        else "install the package that registers it, or write it: `esrjax method new NAME`",
    )


def _ambiguous(name: str, entries: tuple[metadata.EntryPoint, ...]) -> AmbiguousMethod:
    return AmbiguousMethod(
        f"Method {name!r} is registered more than once",
        rule="one package registers a name",
        location=describe_providers(entries),
        remedy="uninstall one of them, or rename its entry point; other methods are not affected",
    )


def _broken(entry: metadata.EntryPoint, reason: str) -> BrokenPlugin:
    return BrokenPlugin(
        f"Plugin {entry.name!r} cannot be loaded: {reason}",
        rule="its entry point must refer to an esrjax.method.Method or Ensemble",
        location=f"{entry.value}, of {distribution_name(entry)}",
        remedy="repair or uninstall that package; other methods are not affected",
    )
