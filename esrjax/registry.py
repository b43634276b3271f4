"""The one door: entry points of the group `esrjax.methods` -> methods."""

import difflib
import functools
import os
from importlib import metadata

from esrjax.door import claimants, claims, distribution, loaded
from esrjax.errors import UserError
from esrjax.method import Ensemble, Method

GROUP = "esrjax.methods"
LIMIT = "ESRJAX_PLUGINS"


class UnknownMethod(UserError):
    """No installed package registers this name."""


class AmbiguousMethod(UserError):
    """Two installed packages register this name."""


class NotOneMethod(UserError):
    """An ensemble where one method is needed."""


class BrokenPlugin(UserError):
    """The package that registers this name cannot give it."""


def names() -> tuple[str, ...]:
    """The registered names, sorted; nothing is imported."""
    return tuple(sorted(_entry_points()))


def method(name: str) -> Method | Ensemble:
    """What is registered as `name`; imports the one package that holds it."""
    return _load(_one(name))


def plain(name: str) -> Method:
    """The one method registered as `name`; an ensemble has no network of its own."""
    found = method(name)
    if isinstance(found, Method):
        return found
    raise NotOneMethod(
        f"{name!r} is an ensemble",
        rule="this needs one network",
        remedy=f"name one of its members: {', '.join(found.members)}",
    )


def origin(name: str) -> str:
    """The distribution and version that register `name`, for instance `esrjax 0.1.0`."""
    return distribution(_one(name))


def _one(name: str) -> metadata.EntryPoint:
    found = _entry_points().get(name, ())
    match found:
        case (entry,):
            return entry
        case ():
            raise _unknown(name)
        case _:
            raise _ambiguous(name, found)


def _entry_points() -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """Entry points by name, as far as discovery is allowed."""
    limit = os.environ.get(LIMIT)
    allowed = None if limit is None else {part.strip() for part in limit.split(",")}
    return {
        name: found for name, found in claims(GROUP).items() if allowed is None or name in allowed
    }


@functools.cache
def _load(entry: metadata.EntryPoint) -> Method | Ensemble:
    return loaded(entry, Method | Ensemble, _broken)  # pyright: ignore[reportArgumentType] # a union serves isinstance


def _unknown(name: str) -> UnknownMethod:
    near = difflib.get_close_matches(name, names(), n=1)
    known = ", ".join(names()) or "none"
    limit = f", limited by {LIMIT}" if LIMIT in os.environ else ""
    return UnknownMethod(
        f"no method is called {name!r}",
        rule=f"a method is an entry point of the group {GROUP!r}; installed{limit}: {known}",
        remedy=f"did you mean {near[0]!r}?"
        if near
        else "install the package that registers it, or write it: `esrjax new NAME`",
    )


def _ambiguous(name: str, found: tuple[metadata.EntryPoint, ...]) -> AmbiguousMethod:
    return AmbiguousMethod(
        f"the method {name!r} is registered more than once",
        rule="a name belongs to one package",
        place=claimants(found),
        remedy="uninstall one of them, or rename its entry point; other methods are not affected",
    )


def _broken(entry: metadata.EntryPoint, what: str) -> BrokenPlugin:
    return BrokenPlugin(
        f"the plugin {entry.name!r} cannot be loaded: {what}",
        rule="its entry point must name an esrjax.method.Method or Ensemble",
        place=f"{entry.value}, of {distribution(entry)}",
        remedy="mend or uninstall that package; other methods are not affected",
    )
