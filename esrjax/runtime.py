"""JAX's persistent compilation cache, and huge pages for this process."""

import os
import sys
from pathlib import Path

HUGE_PAGES_ENV = "ESRJAX_HUGE_PAGES"  # "0" turns them off
TUNABLES_ENV = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # malloc requests transparent huge pages by madvise
THP_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
DEBUGGER_MODULES = ("pdb", "cProfile", "debugpy", "coverage")


def enable_compilation_cache() -> None:
    """Enable JAX's persistent compilation cache, through the environment variables that JAX reads.

    Call it before JAX is imported. Variables that are already set (`JAX_COMPILATION_CACHE_DIR` and
    others) take precedence. If the folder cannot be written to, there is no cache.
    """
    from esrjax.io import cache_dir  # here: `reexec_with_huge_pages` would pay for it twice

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
