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
from functools import partial
from pathlib import Path
from types import FrameType

from esrjax.errors import DistributedError, run_and_report_errors
from esrjax.runtime import STOP_SIGNALS

GRACE_PERIOD_S = 25  # seconds between SIGTERM and SIGKILL; schedulers wait 30
CHILD_ENV = "ESRJAX_SUPERVISED"  # set in the child; its value is the parent's process ID


def is_child() -> bool:
    """Return whether this process is the child of a supervisor."""
    return os.environ.get(CHILD_ENV) == str(os.getppid())


def supervise(folder: Path) -> None:
    """Run this command in a child process, forward signals, and exit with its exit code.

    `STOP_SIGNALS` are forwarded as SIGTERM; the child is killed `GRACE_PERIOD_S` after the first of
    them.

    Args:
        folder: The run directory, named in errors.

    Raises:
        DistributedError: A signal ended the child.
    """
    command, env = [sys.executable, *sys.orig_argv[1:]], {CHILD_ENV: str(os.getpid())}
    # In a session of its own, so that Ctrl-C reaches the supervisor only, which forwards it.
    child = subprocess.Popen(command, env=os.environ | env, start_new_session=True)
    received: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        if not received:
            signal.alarm(GRACE_PERIOD_S)
        received.append(number)
        child.send_signal(signal.SIGKILL if number == signal.SIGALRM else signal.SIGTERM)

    for number in (*STOP_SIGNALS, signal.SIGALRM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)
    code = child.wait()
    signal.alarm(0)
    if code < 0:
        raise _error(_reason(signal.Signals(-code), received), folder)
    sys.exit(code)


def run_child(target: Callable[[], None], folder: Path) -> None:
    """Run `target` in the child; report errors of the communication with other processes.

    Where it fails, this leaves by `os._exit`: the shutdown of JAX would wait for lost processes.

    Args:
        target: The training.
        folder: The run directory, named in errors.
    """
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)  # SLURM sends them to all processes of a task
    try:
        code = run_and_report_errors(partial(_convert_errors, target, folder))
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _die_with_parent() -> None:
    """End this process where its supervisor is gone: nobody would report how it ends."""
    while is_child():
        time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)


def _convert_errors(target: Callable[[], None], folder: Path) -> None:
    """Run `target`; raise an error of JAX as `DistributedError` unless memory ran out."""
    import jax

    try:
        target()
    except jax.errors.JaxRuntimeError as error:
        message = str(error).strip().split("\n")[0][:200]
        if message.startswith("RESOURCE_EXHAUSTED"):
            raise
        raise _error(f"Communication between processes failed: {message}", folder) from error


def _reason(number: signal.Signals, received: Sequence[int]) -> str:
    """Why the signal `number` ended the child, after the supervisor `received` others."""
    if number == signal.SIGABRT:
        return "Another process has died or cannot be reached"
    if signal.SIGALRM in received:
        return f"The running step did not end within {GRACE_PERIOD_S} s of SIGTERM"
    if received:
        return "The process was stopped before training started"
    return f"The process was ended by {number.name}"


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
