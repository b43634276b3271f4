"""A supervisor for one process of a distributed run, which reports how that process ended.

JAX ends a process whose peers are gone by SIGABRT, in the middle of whatever it does: no `except`
can report that, only another process. So `esrjax train --distributed` starts itself once more, with
`CHILD_ENV` set, and waits for that child.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from esrjax.errors import DistributedError, run_and_report_errors

GRACE_PERIOD_S = 25  # seconds between SIGTERM and SIGKILL; schedulers wait 30
CHILD_ENV = "ESRJAX_SUPERVISED"  # set in the child; its value is the parent's process ID


def is_child() -> bool:
    """Return whether this process is the child of a supervisor."""
    return os.environ.get(CHILD_ENV) == str(os.getppid())


def supervise(folder: Path, command: Sequence[str] = ()) -> None:
    """Run a command in a child process, forward signals, and exit with its exit code.

    Args:
        folder: The run directory, named in errors.
        command: The command; by default the one that this process was started with.

    Raises:
        DistributedError: A signal ended the child.
    """
    command = command or [sys.executable, *sys.orig_argv[1:]]
    # In a session of its own, so that Ctrl-C reaches the supervisor only, which forwards it.
    child = subprocess.Popen(
        command, env=os.environ | {CHILD_ENV: str(os.getpid())}, start_new_session=True
    )
    supervisor = _Supervisor(child)
    code = supervisor.wait()
    if code < 0:
        raise _process_lost(signal.Signals(-code), supervisor, folder)
    sys.exit(code)


class _Supervisor:
    """Forwards SIGTERM and SIGINT to the child, and kills it after `GRACE_PERIOD_S`."""

    def __init__(self, child: subprocess.Popen[bytes]):
        self._child, self.is_stopping, self.is_killed = child, False, False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, self._on_signal)

    def wait(self) -> int:
        """Return the exit code of the child, negative where a signal ended it."""
        code = self._child.wait()
        signal.alarm(0)
        return code

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.is_killed = number == signal.SIGALRM
        if not self.is_stopping:
            signal.alarm(GRACE_PERIOD_S)
        self.is_stopping = True
        self._child.send_signal(signal.SIGKILL if self.is_killed else signal.SIGTERM)


def run_child(target: Callable[[], None], folder: Path) -> None:
    """Run `target` in the child; report errors of the communication with other processes.

    Where it fails, this leaves by `os._exit`: the shutdown of JAX would wait for lost processes.

    Args:
        target: The training.
        folder: The run directory, named in errors.
    """
    parent = int(os.environ[CHILD_ENV])
    threading.Thread(target=_die_with_parent, args=(parent,), daemon=True).start()
    import jax

    try:
        code = run_and_report_errors(
            lambda: _convert_errors(target, folder, jax.errors.JaxRuntimeError)
        )
    except BaseException:
        traceback.print_exc()
        code = 1
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_with_parent(parent: int) -> None:
    """End this process where its supervisor is gone: nobody would report how it ends."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


def _convert_errors(
    target: Callable[[], None], folder: Path, runtime_error: type[Exception]
) -> None:
    """Run `target`; a `runtime_error` is raised as `DistributedError` unless memory ran out."""
    try:
        target()
    except runtime_error as error:
        message = str(error).strip().split("\n")[0][:200]
        if message.startswith("RESOURCE_EXHAUSTED"):
            raise
        raise _error(f"Communication between processes failed: {message}", folder) from error


def _process_lost(
    number: signal.Signals, supervisor: _Supervisor, folder: Path
) -> DistributedError:
    if number == signal.SIGABRT:
        return _error("Another process has died or cannot be reached", folder)
    if supervisor.is_killed:
        return _error(f"The running step did not end within {GRACE_PERIOD_S} s of SIGTERM", folder)
    if supervisor.is_stopping:
        return _error("The process was stopped before training started", folder)
    return _error(f"The process was ended by {number.name}", folder)


def _error(problem: str, folder: Path) -> DistributedError:
    has_started = (folder / "recipe.json").exists()
    return DistributedError(
        problem,
        rule="all processes of a run start within a minute and live until it ends; where one "
        "ends early, all end",
        location=str(folder),
        remedy="read the error of the process that ended first, then restart all processes"
        + (" with --resume: they resume from the last complete checkpoint" if has_started else ""),
    )
