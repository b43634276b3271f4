"""What can be brought or made again: the user's cache."""

import os
from pathlib import Path


def folder(name: str) -> Path:
    """`name` in `$XDG_CACHE_HOME/esrjax`, else in `~/.cache/esrjax`."""
    said = os.environ.get("XDG_CACHE_HOME")
    return (Path(said) if said else Path.home() / ".cache") / "esrjax" / name


def keep_programs() -> None:
    """Let JAX keep what it compiles, to be called before it is imported.

    The environment decides if it says something: `JAX_COMPILATION_CACHE_DIR` and others that JAX
    reads. Without a folder to write to, nothing is kept.
    """
    place = folder("programs")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and _writable(place):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _writable(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(place, os.W_OK)
