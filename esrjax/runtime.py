"""JAX's persistent compilation cache, and huge pages and signals of this process."""

import os
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

HUGE_PAGES_ENV = "ESRJAX_HUGE_PAGES"  # "0" turns them off
TUNABLES_ENV = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # malloc requests transparent huge pages by madvise
THP_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CACHE_WARNING = r"(?s)Error (reading|writing) persistent compilation cache entry for '(.*?)': (.*)"
# They end a training, which saves its state first. SLURM sends USR1 where it is asked for it.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# Variables that esrjax reads; the folders need not be set.
FOLDER_VARIABLES = ("ESRJAX_DATA", "ESRJAX_REFERENCE")
VARIABLES = (*FOLDER_VARIABLES, "ESRJAX_PLUGINS", HUGE_PAGES_ENV, "ESRJAX_SUPERVISED")
DEBUGGER_MODULES = ("pdb", "cProfile", "debugpy", "coverage")


def check_environment() -> None:
    """Note variables `ESRJAX_*` that nothing reads, and those that name no folder."""
    from esrjax.errors import log_note, suggest

    for name in os.environ:
        if name.startswith("ESRJAX_") and name not in VARIABLES:
            remedy = suggest(name, VARIABLES, f"the variables are {', '.join(VARIABLES[:-1])}")
            log_note(f"the variable {name} has no effect: {remedy}")
    for name in FOLDER_VARIABLES:
        folder = os.environ.get(name)
        if folder and not os.path.isdir(folder):
            log_note(f"{name} is {folder!r}, which is not a folder")


def enable_compilation_cache() -> None:
    """Enable JAX's persistent compilation cache, through the environment variables that JAX reads.

    Call it before JAX is imported. Variables that are already set (`JAX_COMPILATION_CACHE_DIR` and
    others) take precedence. If no folder can be written to, there is no cache. An entry that JAX
    cannot read or write is removed, since JAX itself would never write it again.
    """
    # Here: `reexec_with_huge_pages` would pay for it twice.
    from esrjax.errors import UnwritableFile
    from esrjax.io import cache_dir

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            folder = cache_dir("programs")
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, UnwritableFile):
            return
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        # JAX's default of 1 s would leave most of a small network's many functions out.
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    _remove_spoiled_entries(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))


def _remove_spoiled_entries(folder: Path) -> None:
    """Handle the warnings of JAX about entries of its cache: remove the entry, and note it."""
    import glob
    import re

    from esrjax.errors import log_note
    from esrjax.io import remove

    show = warnings.showwarning

    def show_or_remove(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        warning = re.match(CACHE_WARNING, str(message))
        if warning is None:
            return show(message, *args, **kwargs)
        action, name, reason = warning.groups()
        for entry in folder.glob(f"{glob.escape(name)}-*-cache"):
            with suppress(OSError):
                remove(entry)
        if action == "reading":
            return log_note(f"damaged entries of the compilation cache '{folder}' are removed")
        return log_note(f"the compilation cache '{folder}' cannot be written: {reason[:200]}")

    warnings.showwarning = show_or_remove


def reexec_with_huge_pages() -> None:
    """Replace this process once by the same command with huge pages, where the system has them.

    XLA's CPU backend allocates its buffers for every run of an executable. glibc takes more than
    32 MiB from the system each time, in pages of 4 KiB with a page fault for each: up to a fifth of
    the time of a network. The setting is read when a process starts, hence `execv`; call this
    before anything that takes time. `GLIBC_TUNABLES` of the environment takes precedence, and so
    ends the recursion.

    Nothing is done where `ESRJAX_HUGE_PAGES=0` is set, and under a debugger, profiler or coverage
    tool, which the new process would lose.
    """
    is_off = TUNABLES_ENV in os.environ or os.environ.get(HUGE_PAGES_ENV) == "0"
    if not is_off and not _is_debugged() and _supports_huge_pages():
        os.environ[TUNABLES_ENV] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def uses_huge_pages() -> bool:
    """Return whether this process was started with huge pages."""
    return HUGE_PAGES in os.environ.get(TUNABLES_ENV, "")


def _is_debugged() -> bool:
    """Return whether a debugger, profiler or coverage tool watches this process."""
    monitoring = getattr(sys, "monitoring", None)  # new in Python 3.12; it has six tool ids
    has_tool = monitoring is not None and any(map(monitoring.get_tool, range(6)))
    is_hooked = sys.gettrace() is not None or sys.getprofile() is not None
    return has_tool or is_hooked or any(name in sys.modules for name in DEBUGGER_MODULES)


def _supports_huge_pages() -> bool:
    """Return whether glibc has the setting (2.35) and the system's mode is "madvise".

    In the mode "always" the setting is not needed, in "never" it has no effect.
    """
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION") or ""  # "glibc 2.36"
        version_number = tuple(int(digits) for digits in version.removeprefix("glibc ").split("."))
        return version_number >= (2, 35) and "[madvise]" in THP_SETTING.read_text()
    except (AttributeError, ValueError, OSError):  # another C library, another system
        return False
