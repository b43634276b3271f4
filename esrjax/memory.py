"""How this process gets its memory from the system."""

import os
import sys
from pathlib import Path

TUNABLES = "GLIBC_TUNABLES"
LARGE = "glibc.malloc.hugetlb=1"
SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def take_large_pages() -> None:
    """Start this very command again, once, with memory in large pages where it can be had so.

    XLA's CPU takes memory anew for every run of a program, and more than 32 MiB of it come from the
    system each time, in pages of 4 KiB with a fault for each: up to a fifth of the time of a
    network. Only a new process can be told otherwise, so call this before all that takes time. The
    environment decides if it says something: `GLIBC_TUNABLES`.
    """
    if TUNABLES not in os.environ and _can_be_asked():
        os.environ[TUNABLES] = LARGE
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def large_pages() -> bool:
    """Whether this process was told to take them."""
    return LARGE in os.environ.get(TUNABLES, "")


def _can_be_asked() -> bool:
    """glibc knows how since 2.35; the system must give large pages, but only where asked."""
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION") or ""  # "glibc 2.36"
        number = tuple(int(part) for part in version.removeprefix("glibc ").split("."))
        return number >= (2, 35) and "[madvise]" in SYSTEM.read_text()
    except (AttributeError, ValueError, OSError):  # another library, another system
        return False
