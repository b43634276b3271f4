"""The user's cache folder, and JAX's persistent compilation cache in it."""

import os
from pathlib import Path


def cache_dir(name: str) -> Path:
    """Return the folder `name` in `$XDG_CACHE_HOME/esrjax`, else in `~/.cache/esrjax`.

    What it contains can be downloaded or computed again.
    """
    xdg_cache_home = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg_cache_home) if xdg_cache_home else Path.home() / ".cache") / "esrjax" / name


def enable_compilation_cache() -> None:
    """Enable JAX's persistent compilation cache, through the environment variables that JAX reads.

    Call it before JAX is imported. Variables that are already set (`JAX_COMPILATION_CACHE_DIR` and
    others) take precedence. If the folder cannot be written to, there is no cache.
    """
    folder = cache_dir("programs")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and _is_writable(folder):
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        # JAX's default of 1 s would leave most of a small network's many functions out.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
