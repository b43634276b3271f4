"""Entry points of packages by group and name, and the methods that they register."""

import contextlib
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, get_args

from esrjax.errors import (
    InvalidArgument,
    NotFound,
    PluginError,
    UserError,
    error_summary,
    log_note,
    suggest,
)
from esrjax.io import cache_dir, parse_json, read_bytes, write_bytes
from esrjax.method import API_VERSION, Ensemble, Method, check_declaration

T = TypeVar("T")
METHOD_GROUP = "esrjax.methods"
PLUGINS_ENV = "ESRJAX_PLUGINS"  # names to which discovery is limited, separated by commas
_OTHERS = "other methods are not affected"
# Names become names of files: what every file system allows.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,98}[A-Za-z0-9_-])?")
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_STDOUT, _STDERR = 1, 2  # file descriptors
# One plugin is imported at a time: what `_contained_import` changes belongs to the process, and two
# threads that import different parts of JAX for the first time may see a half of it.
_import_lock = threading.RLock()
_MAX_CACHE_BYTES = 1 << 20


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
    for entry in _list_entry_points(group):
        entries.setdefault(entry.name, {})[_distribution(entry), entry.value] = entry
    return {name: tuple(entries.values()) for name, entries in entries.items()}


def _list_entry_points(group: str) -> Iterable[metadata.EntryPoint]:
    """Return the entry points of a group, without those of distributions that cannot be read."""
    try:
        return metadata.entry_points(group=group)
    except Exception:  # one malformed file is an error for all
        by_name: dict[str, Iterable[metadata.EntryPoint]] = {}
        for distribution in metadata.distributions():
            try:
                # As in `entry_points`, the first on the path hides others of its name.
                by_name.setdefault(distribution.name, distribution.entry_points.select(group=group))
            except Exception as error:
                place = getattr(distribution, "_path", "an unknown folder")
                log_note(f"{place}: its entry points are ignored: {error_summary(error)}")
        return [entry for entries in by_name.values() for entry in entries]


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

    The code of a package can raise what it likes, exit or print: that does not end the program, and
    nothing of it goes to standard output. Only Ctrl-C passes.

    Args:
        entry: The entry point.
        expected_type: The class that the object must be an instance of.
        noun: What the entry point is of: "Method".
        others: For the remedy: what a broken package leaves as it is.

    Raises:
        PluginError: The name is not allowed, the import fails, or the type differs.
    """
    _check_name(entry, noun, others)
    cause = None
    try:
        with _import_lock, _contained_import():
            value = entry.load()
        if isinstance(value, expected_type):
            return value
        reason = f"it is a {type(value).__name__}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() among them
        cause, reason = error, f"importing it raised {error_summary(error)}"
    types = get_args(expected_type) or (expected_type,)  # of a union, or the class itself
    type_names = " or ".join(f"{cls.__module__}.{cls.__name__}" for cls in types)
    raise PluginError(
        f"{noun} {entry.name!r} cannot be loaded: {reason}",
        rule=f"its entry point must refer to an instance of {type_names}",
        location=f"{entry.value}, of {_distribution(entry)}",
        remedy=f"repair or uninstall that package; {others}",
    ) from cause


def _check_name(entry: metadata.EntryPoint, noun: str, others: str) -> None:
    if _NAME.fullmatch(entry.name) and not _WINDOWS_DEVICE.fullmatch(entry.name):
        return
    raise PluginError(
        f"{noun} {entry.name!r} has a name that is not allowed",
        rule="files are called after a name: up to 100 letters, digits, '_', '-' and '.' of ASCII, "
        "a letter or digit first, no '.' last, no device of Windows such as nul",
        location=f"{entry.value}, of {_distribution(entry)}",
        remedy=f"rename that entry point or uninstall the package; {others}",
    )


@contextlib.contextmanager
def _contained_import() -> Generator[None]:
    """Run code of others: it prints to standard error, and `os._exit` raises `SystemExit`."""

    def refuse(*args: object) -> None:
        raise SystemExit(f"os._exit{args}")

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # the folder may have been removed
            stack.enter_context(contextlib.chdir("."))  # to return to it
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        with contextlib.suppress(OSError, ValueError):  # a stream may be closed
            stack.enter_context(_stdout_to_stderr())
        stack.callback(setattr, os, "_exit", os._exit)
        os._exit = refuse  # pyright: ignore[reportAttributeAccessIssue]
        yield


@contextlib.contextmanager
def _stdout_to_stderr() -> Generator[None]:
    """Let processes and libraries that write to standard output itself write to standard error."""
    if sys.__stdout__ is not None:
        sys.__stdout__.flush()
    stdout = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        yield
    finally:
        os.dup2(stdout, _STDOUT)
        os.close(stdout)


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
    try:
        return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "no distribution"
    except Exception:  # its metadata is damaged
        return "a damaged distribution"


# --- methods ------------------------------------------------------------------------------------


def names() -> tuple[str, ...]:
    """Return the registered names, sorted; no plugin is imported."""
    return tuple(sorted(filter(_is_allowed, entry_points_by_name(METHOD_GROUP))))


def get_entry(name: str) -> Method | Ensemble:
    """Return the method or ensemble that is registered as `name`.

    Only the package that registers it is imported.

    Raises:
        NotFound: No package registers the name.
        PluginError: Two packages register it, its name is not allowed, it cannot be imported, it is
            neither a `Method` nor an `Ensemble`, is for another version of the plugin interface, or
            declares what is not so.
    """
    entry = _entry_point(name)
    method = load_entry_point(entry, Method | Ensemble, "Method", _OTHERS)  # pyright: ignore[reportArgumentType] # a union serves isinstance
    if method.api == API_VERSION:
        return _check_declaration(entry, method)
    raise PluginError(
        f"Method {entry.name!r} is for version {method.api} of the plugin interface",
        rule=f"this esrjax has version {API_VERSION} (esrjax.method.API_VERSION)",
        location=f"{entry.value}, of {_distribution(entry)}",
        remedy=f"install a version of that package for {API_VERSION}, or the esrjax that it is "
        f"for; {_OTHERS}",
    )


def _check_declaration(entry: metadata.EntryPoint, method: Method | Ensemble) -> Method | Ensemble:
    try:
        check_declaration(method)
        return method
    except UserError as error:
        problem, rule, cause = error.problem, error.rule, error
    except Exception as error:  # of a class that the package derives
        problem, rule, cause = error_summary(error), "its fields can be read", error
    raise PluginError(
        f"Method {entry.name!r} is invalid: {problem}",
        rule=f"{rule} ({type(method).__module__}.{type(method).__name__})",
        location=f"{entry.value}, of {_distribution(entry)}",
        remedy=f"repair or uninstall that package; {_OTHERS}",
    ) from cause


def iter_entries(
    on_error: Callable[[UserError], object] = lambda _: None,
) -> Iterator[tuple[str, Method | Ensemble]]:
    """Yield the name and value of every method and ensemble that can be loaded.

    Args:
        on_error: Receives the error of each of the others.
    """
    for name in names():
        try:
            yield name, get_entry(name)
        except UserError as error:
            on_error(error)


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


def source_hash(name: str, known: dict[str, str] | None = None) -> str:
    """Return a hash of what a method is computed from: esrjax, its package, all installed versions.

    It is of the names, sizes and times of change of the files of esrjax and of the package that
    registers `name`, of the installed distributions, and of Python's version; nothing is imported.
    What was computed from a method holds while its hash is the same, unless its package uses
    another one that is edited in place.

    Args:
        name: The registered name.
        known: Hashes of packages, which calls that follow each other at once share; it is filled.

    Raises:
        NotFound: No package registers the name.
        PluginError: Two packages register it.
        OSError: Its source is no file.
    """
    value, known = _entry_point(name).value, {} if known is None else known
    for package in ("", "esrjax", value.partition(":")[0].partition(".")[0]):
        if package not in known:
            files = _source_files(package) if package else _installed_distributions()
            stats = [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]
            known[package] = _hash([*sorted(stats), sys.version])
    return _hash([name, value, known[""], known["esrjax"], known[package]])


def _source_files(package: str) -> Iterator[str]:
    """Yield the files of a package or module on `sys.path`."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    for top in folders or ():
        for folder, _, files in os.walk(top):
            if not folder.endswith("__pycache__"):
                yield from (os.path.join(folder, file) for file in files)
    if spec and not folders and spec.origin:
        yield spec.origin


def _installed_distributions() -> Iterator[str]:
    """Yield the folders of metadata on `sys.path`, `NAME-VERSION.dist-info`."""
    for folder in filter(os.path.isdir, {*sys.path}):
        names = (name for name in os.listdir(folder) if name.endswith((".dist-info", ".egg-info")))
        yield from (os.path.join(folder, name) for name in names)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


class MethodCache:
    """What earlier processes computed from methods: values for JSON, in the user's cache.

    There is one file for each name. It holds while the `source_hash` of the method, and of each
    member of an ensemble, is the same. A file that is missing or damaged, or that cannot be
    written, is no error: the value is computed again.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, str] = {}  # of packages

    def find(self, name: str) -> Any:
        """Return the value of a method, None if there is none that holds; nothing is imported."""
        try:
            text = read_bytes(_cache_file(name), _MAX_CACHE_BYTES).decode()
            content = parse_json(text)
            members, value = content["members"], content["value"]
            return value if content["key"] == self._key(name, members, value) else None
        except (UserError, OSError, ValueError, TypeError, LookupError):
            return None

    def store(self, name: str, value: Any, members: Iterable[str] = ()) -> None:
        """Store the value of a method.

        Args:
            name: The registered name.
            value: For JSON.
            members: Other methods that it was computed from.
        """
        with contextlib.suppress(UserError, OSError, ValueError, TypeError):
            content = {"members": [*members], "value": value}
            content["key"] = self._key(name, content["members"], value)
            write_bytes(_cache_file(name), json.dumps(content).encode())

    def _key(self, name: str, members: list[str], value: Any) -> str:
        """Hash of the sources and of the content itself, by which damage is recognized."""
        hashes = [source_hash(method, self._hashes) for method in (name, *members)]
        return _hash([hashes, members, value])


def _cache_file(name: str) -> Path:
    return cache_dir("methods") / f"{name}.json"


def _entry_point(name: str) -> metadata.EntryPoint:
    entries = entry_points_by_name(METHOD_GROUP)
    if name in entries and _is_allowed(name):
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


def _is_allowed(name: str) -> bool:
    """Return whether `PLUGINS_ENV` allows a name."""
    setting = os.environ.get(PLUGINS_ENV)
    return setting is None or name in _parse_names(setting)


@functools.lru_cache(maxsize=4)
def _parse_names(setting: str) -> frozenset[str]:
    return frozenset(part.strip() for part in setting.split(","))


# --- losses, optimizers, metric specs ------------------------------------------------------------

LOSS_GROUP = "esrjax.losses"  # functions (sr, hr) -> scalar
OPTIMIZER_GROUP = "esrjax.optimizers"  # functions (recipe.Optimizer, schedule) -> transformation
METRIC_GROUP = "esrjax.metrics"  # MetricSpecs
LOGGER_GROUP = "esrjax.loggers"  # classes: logger(folder) is a context manager with log(report)
RECIPE_GROUP = "esrjax.recipes"  # packages, whose folder has recipes, NAME.toml


def recipe_folders() -> dict[Path, str]:
    """Return the folders of packages with recipes, and the distributions that register them.

    An entry point such as `mine = "esrjax_mine.recipes"` is a package; it is not imported, and one
    that cannot be found is left out with a note.
    """
    folders: dict[Path, str] = {}
    for entry in itertools.chain(*entry_points_by_name(RECIPE_GROUP).values()):
        folder = _package_folder(entry)
        if folder is not None and folder.is_dir():
            folders[folder] = _distribution(entry)
        else:
            log_note(f"{_distribution(entry)}: its recipes are ignored: no package {entry.value!r}")
    return folders


def _package_folder(entry: metadata.EntryPoint) -> Path | None:
    try:
        package, *parts = entry.module.split(".")
        spec = importlib.util.find_spec(package)
    except (AttributeError, ImportError, ValueError):  # the value is no module; it has no spec
        return None
    roots = spec.submodule_search_locations if spec else None
    return Path(next(iter(roots)), *parts) if roots else None


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
