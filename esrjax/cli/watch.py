"""A process that waits for one of several that train together, and words its end.

JAX ends a process whose peers are gone by SIGABRT, in the middle of whatever it does: no `except`
can word that, only another process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

from esrjax.errors import UserError

GRACE = 25  # seconds from the word to stop until it is enforced; schedulers wait 30
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl


class ProcessLost(UserError):
    """One of the processes of a training has come to an untimely end."""


def watched(body: Callable[[], None], folder: Path) -> None:
    """Run `body` in a child, hand on signals to stop, and raise `ProcessLost` if it dies.

    folder: of the run, for the way on.
    """
    child = os.fork()
    if child == 0:
        os._exit(_run(body, folder))
    watcher = _Watcher(child)
    code = watcher.waited()
    if code < 0:
        raise _lost(signal.Signals(-code), watcher, folder)
    sys.exit(code)


class _Watcher:
    """Hands the word to stop on to the child, and enforces it when `GRACE` is over."""

    def __init__(self, child: int):
        self._child, self.told, self.late = child, False, False
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(each, self._hear)

    def waited(self) -> int:
        """The exit code of the child, negative where a signal ended it."""
        code = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        signal.alarm(0)
        return code

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.late = number == signal.SIGALRM
        if not self.told:
            signal.alarm(GRACE)
        self.told = True
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(self._child, signal.SIGKILL if self.late else signal.SIGTERM)


def _run(body: Callable[[], None], folder: Path) -> int:
    """The child: its exit code. It leaves without JAX's farewell, which waits for the lost."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent hands it on
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    try:
        import jax

        from esrjax.cli import told

        return told(lambda: _worded(body, folder, jax.errors.JaxRuntimeError))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _worded(body: Callable[[], None], folder: Path, runtime_error: type[Exception]) -> None:
    try:
        body()
    except runtime_error as error:
        said = str(error).strip().split("\n")[0][:200]
        if said.startswith("RESOURCE_EXHAUSTED"):
            raise
        raise _failed(f"the processes no longer compute together: {said}", folder) from error


def _lost(by: signal.Signals, watcher: _Watcher, folder: Path) -> ProcessLost:
    if by == signal.SIGABRT:
        return _failed("another process has died or cannot be reached", folder)
    if watcher.late:
        return _failed(f"the running step was not over {GRACE} s after the word to stop", folder)
    if watcher.told:
        return _failed("it was told to stop before it had begun", folder)
    return _failed(f"this process was ended by {by.name}", folder)


def _failed(problem: str, folder: Path) -> ProcessLost:
    begun = (folder / "recipe.json").exists()
    return ProcessLost(
        problem,
        rule="the processes of a training start within a minute of each other and live as long as "
        "it does; where one ends, all end",
        place=str(folder),
        remedy="see what the process says that ended first, then start all again"
        + (" with --resume: they go on from the last whole checkpoint" if begun else ""),
    )
