"""Entry points of packages by group and name, and the methods that they register."""

import functools
import os
import sys
from importlib import metadata
from typing import Any, TypeVar, get_args

from esrjax.errors import InvalidArgument, NotFound, PluginError, suggest
from esrjax.method import API_VERSION, Ensemble, Method

T = TypeVar("T")
METHOD_GROUP = "esrjax.methods"
PLUGINS_ENV = "ESRJAX_PLUGINS"  # names to which discovery is limited, separated by commas
_OTHERS = "other methods are not affected"


# --- entry points of any group -------------------------------------------------------------------


def entry_points_by_name(group: str) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """Return the entry points of a group by name; more than one where packages collide.

    A distribution that is found twice on `sys.path` (an editable install) counts once.
    """
    # The scan of all installed packages takes 0.1 s; installing one changes the folder's mtime.
    paths = [path or os.curdir for path in sys.path]
    mtimes = tuple((path, os.stat(path).st_mtime_ns) for path in paths if os.path.exists(path))
    return _scan(group, mtimes)


@functools.lru_cache(maxsize=16)
def _scan(
    group: str, mtimes: tuple[tuple[str, int], ...]
) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    entries: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for entry in metadata.entry_points(group=group):
        entries.setdefault(entry.name, {})[_distribution(entry), entry.value] = entry
    return {name: tuple(entries.values()) for name, entries in entries.items()}


def only_entry_point(
    entries: tuple[metadata.EntryPoint, ...], noun: str, others: str
) -> metadata.EntryPoint:
    """Return the entry point of a name that one package registers.

    Args:
        entries: The entry points of the name, at least one.
        noun: What the name is of: "Method".
        others: For the remedy: what a collision leaves as it is.

    Raises:
        PluginError: There is more than one.
    """
    if len(entries) == 1:
        return entries[0]
    raise PluginError(
        f"{noun} {entries[0].name!r} is registered more than once",
        rule="one package registers a name",
        location=" and ".join(f"{_distribution(entry)} ({entry.value})" for entry in entries),
        remedy=f"uninstall one of them, or rename its entry point; {others}",
    )


def load_entry_point(
    entry: metadata.EntryPoint, expected_type: type[T], noun: str, others: str
) -> T:
    """Import the object that an entry point refers to.

    Args:
        entry: The entry point.
        expected_type: The class that the object must be an instance of.
        noun: What the entry point is of: "Method".
        others: For the remedy: what a broken package leaves as it is.

    Raises:
        PluginError: The import fails, or the type differs.
    """
    cause = None
    try:
        value = entry.load()
        if isinstance(value, expected_type):
            return value
        reason = f"it is a {type(value).__name__}"
    except Exception as error:
        cause, reason = error, f"importing it raised {type(error).__name__}: {error}"
    types = get_args(expected_type) or (expected_type,)  # of a union, or the class itself
    type_names = " or ".join(f"{cls.__module__}.{cls.__name__}" for cls in types)
    raise PluginError(
        f"{noun} {entry.name!r} cannot be loaded: {reason}",
        rule=f"its entry point must refer to an instance of {type_names}",
        location=f"{entry.value}, of {_distribution(entry)}",
        remedy=f"repair or uninstall that package; {others}",
    ) from cause


def load_by_name(group: str, name: str, expected_type: type[T], noun: str, others: str) -> T | None:
    """Return the object that one package registers under a name of a group, None if none does.

    Args:
        group: The group of entry points.
        name: The registered name.
        expected_type: As of `load_entry_point`.
        noun: As of `load_entry_point`.
        others: As of `load_entry_point`.

    Raises:
        PluginError: Two packages register it, it cannot be imported, or the type differs.
    """
    entries = entry_points_by_name(group).get(name)
    if entries is None:
        return None
    return load_entry_point(only_entry_point(entries, noun, others), expected_type, noun, others)


def _distribution(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


# --- methods ------------------------------------------------------------------------------------


def names() -> tuple[str, ...]:
    """Return the registered names, sorted; no plugin is imported."""
    return tuple(sorted(_entry_points()))


def get_entry(name: str) -> Method | Ensemble:
    """Return the method or ensemble that is registered as `name`.

    Only the package that registers it is imported.

    Raises:
        NotFound: No package registers the name.
        PluginError: Two packages register it, it cannot be imported, it is neither a `Method` nor
            an `Ensemble`, or is for another version of the plugin interface.
    """
    entry = _entry_point(name)
    method = load_entry_point(entry, Method | Ensemble, "Method", _OTHERS)  # pyright: ignore[reportArgumentType] # a union serves isinstance
    if method.api == API_VERSION:
        return method
    raise PluginError(
        f"Method {entry.name!r} is for version {method.api} of the plugin interface",
        rule=f"this esrjax has version {API_VERSION} (esrjax.method.API_VERSION)",
        location=f"{entry.value}, of {_distribution(entry)}",
        remedy=f"install a version of that package for {API_VERSION}, or the esrjax that it is "
        f"for; {_OTHERS}",
    )


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


def is_ensemble(name: str) -> bool:
    """Return whether `name` is a registered ensemble."""
    return isinstance(get_entry(name), Ensemble)


def distribution_of(name: str) -> str:
    """Return the distribution that registers `name`, with its version: `esrjax 0.1.0`."""
    return _distribution(_entry_point(name))


def _entry_point(name: str) -> metadata.EntryPoint:
    entries = _entry_points()
    if name in entries:
        return only_entry_point(entries[name], "Method", _OTHERS)
    limit = f", limited by {PLUGINS_ENV}" if PLUGINS_ENV in os.environ else ""
    raise NotFound(
        f"Unknown method {name!r}",
        rule=f"a method is an entry point of the group {METHOD_GROUP!r}; "
        f"installed{limit}: {', '.join(names()) or 'none'}",
        remedy=suggest(
            name,
            names(),
            "install the package that registers it, or write it: `esrjax method new NAME`",
        ),
    )


def _entry_points() -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """Return the entry points by name, limited by `PLUGINS_ENV`."""
    setting = os.environ.get(PLUGINS_ENV)
    allowed = None if setting is None else {part.strip() for part in setting.split(",")}
    return {
        name: entries
        for name, entries in entry_points_by_name(METHOD_GROUP).items()
        if allowed is None or name in allowed
    }


# --- losses, optimizers, metric specs ------------------------------------------------------------

LOSS_GROUP = "esrjax.losses"  # functions (sr, hr) -> scalar
OPTIMIZER_GROUP = "esrjax.optimizers"  # functions (recipe.Optimizer, schedule) -> transformation
METRIC_GROUP = "esrjax.metrics"  # MetricSpecs


def component_names(group: str) -> tuple[str, ...]:
    """Return the names that are registered in a group of entry points, sorted."""
    return tuple(sorted(entry_points_by_name(group)))


def get_component(group: str, name: str, noun: str, expected_type: Any) -> Any:
    """Return the loss, optimizer or metric spec that a package registers under a name.

    Args:
        group: The group of entry points, such as `LOSS_GROUP`.
        name: The registered name.
        noun: What the group contains: "loss".
        expected_type: The class of what it contains, `Callable` for functions.

    Raises:
        NotFound: No package registers the name.
        PluginError: Two packages register it, it cannot be imported, or it has another type.
    """
    others = f"others of the group {group!r} are not affected"
    component = load_by_name(group, name, expected_type, noun.capitalize(), others)
    if component is None:
        raise unknown_component(group, name, noun)
    return component


def unknown_component(group: str, name: str, noun: str) -> NotFound:
    """Return the error for a name that no package registers in a group."""
    known = component_names(group)
    return NotFound(
        f"Unknown {noun} {name!r}",
        rule=f"known are the entry points of the group {group!r}: {', '.join(known)}",
        remedy=suggest(name, known, "use one of these, or install the package that registers it"),
    )
