"""A supervisor for one process of a distributed run, which reports how that process ended.

JAX ends a process whose peers are gone by SIGABRT, in the middle of whatever it does: no `except`
can report that, only another process.
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

GRACE_PERIOD_S = 25  # seconds between SIGTERM and SIGKILL; schedulers wait 30
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl


class ProcessLost(UserError):
    """Raised when a process of a distributed run ends before the run does."""


def run_supervised(target: Callable[[], None], folder: Path) -> None:
    """Run `target` in a child process, forward signals, and exit with its exit code.

    Args:
        target: The function to run.
        folder: The run directory, named in errors.

    Raises:
        ProcessLost: A signal ended the child.
    """
    child = os.fork()
    if child == 0:
        os._exit(_run_child(target, folder))
    supervisor = _Supervisor(child)
    code = supervisor.wait()
    if code < 0:
        raise _process_lost(signal.Signals(-code), supervisor, folder)
    sys.exit(code)


class _Supervisor:
    """Forwards SIGTERM and SIGINT to the child, and kills it after `GRACE_PERIOD_S`."""

    def __init__(self, child: int):
        self._child, self.is_stopping, self.is_killed = child, False, False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, self._on_signal)

    def wait(self) -> int:
        """Return the exit code of the child, negative where a signal ended it."""
        code = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        signal.alarm(0)
        return code

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.is_killed = number == signal.SIGALRM
        if not self.is_stopping:
            signal.alarm(GRACE_PERIOD_S)
        self.is_stopping = True
        with suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(self._child, signal.SIGKILL if self.is_killed else signal.SIGTERM)


def _run_child(target: Callable[[], None], folder: Path) -> int:
    """Run `target` in the child; return the exit code.

    The caller leaves by `os._exit`: the shutdown of JAX would wait for processes that are lost.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the parent forwards it
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    try:
        import jax

        from esrjax.cli import run_and_report_errors

        return run_and_report_errors(
            lambda: _convert_errors(target, folder, jax.errors.JaxRuntimeError)
        )
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _convert_errors(
    target: Callable[[], None], folder: Path, runtime_error: type[Exception]
) -> None:
    """Run `target`; a `runtime_error` is raised as `ProcessLost` unless memory ran out."""
    try:
        target()
    except runtime_error as error:
        message = str(error).strip().split("\n")[0][:200]
        if message.startswith("RESOURCE_EXHAUSTED"):
            raise
        raise _error(f"Communication between processes failed: {message}", folder) from error


def _process_lost(number: signal.Signals, supervisor: _Supervisor, folder: Path) -> ProcessLost:
    if number == signal.SIGABRT:
        return _error("Another process has died or cannot be reached", folder)
    if supervisor.is_killed:
        return _error(f"The running step did not end within {GRACE_PERIOD_S} s of SIGTERM", folder)
    if supervisor.is_stopping:
        return _error("The process was stopped before training started", folder)
    return _error(f"The process was ended by {number.name}", folder)


def _error(problem: str, folder: Path) -> ProcessLost:
    has_started = (folder / "recipe.json").exists()
    return ProcessLost(
        problem,
        rule="all processes of a run start within a minute and live until it ends; where one "
        "ends early, all end",
        location=str(folder),
        remedy="read the error of the process that ended first, then restart all processes"
        + (" with --resume: they resume from the last complete checkpoint" if has_started else ""),
    )
