"""Cases of the attack campaign, and the commands that they run."""

import contextlib
import functools
import io
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST_MESSAGE = 4000  # characters of an error message that a terminal can still show
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attack.

    `attack` gets an empty folder, and returns None if the program survives, else what went wrong
    in one line. An exception of `attack` counts as not survived.
    """

    name: str
    attack: Callable[[Path], str | None]
    is_fast: bool = False  # in this process, in a fraction of a second: CI samples these
    count: int = 1  # of attacks in one: a block of fuzzed inputs

    def run(self, folder: Path) -> str | None:
        try:
            return self.attack(folder)
        except Exception as error:
            return f"{type(error).__name__}: {error}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Exit code (negative: the signal), standard output and standard error of a command."""

    code: int
    out: str
    err: str

    def find_fault(self, *, refuses: bool) -> str | None:
        """Return what is wrong with how the command ended, or None.

        A command ends with code 0 or, if `refuses`, with another code and a message: the program's
        own words, of bounded length, without a traceback and without control characters.
        """
        text = self.out + self.err
        if "Traceback (most recent call last)" in text:
            return f"traceback: {text.strip().splitlines()[-1][:200]}"
        if self.code < 0:
            return f"ended by signal {-self.code}"
        if (self.code != 0) != refuses:
            return f"exit code {self.code}: {text.strip()[-300:]}"
        if refuses and not self.err.strip():
            return "no message"
        if len(self.err) > LONGEST_MESSAGE:
            return f"a message of {len(self.err):,} characters"
        if control := _CONTROL.search(text):
            return f"control character {control[0]!r} in the output"
        return None


def run_in_process(*args: object, folder: Path) -> Outcome:
    """Run `esrjax ARGS` in this process, in `folder`: much faster than a new process."""
    from esrjax.cli import app
    from esrjax.errors import log_note, run_and_report_errors

    log_note.cache_clear()
    out, err = io.StringIO(), io.StringIO()
    run = functools.partial(app, list(map(str, args)), prog_name="esrjax")
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(folder),
    ):
        try:
            code = run_and_report_errors(run)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
    return Outcome(code=code, out=out.getvalue(), err=err.getvalue())


def find_refusal_fault(call: Callable[[], object]) -> str | None:
    """Return what is wrong with how a call of the Python API refuses its input, or None.

    It raises a `UserError` with a message of bounded length and without control characters.
    """
    from esrjax.errors import UserError

    try:
        value = call()
    except UserError as error:
        return find_message_fault(error)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return f"not refused, but {value!r:.80}"


def find_message_fault(error: Exception) -> str | None:
    """Return what is wrong with the message of an error, or None."""
    if len(str(error)) > LONGEST_MESSAGE:
        return f"a message of {len(str(error)):,} characters"
    control = _CONTROL.search(str(error))
    return f"control character {control[0]!r} in the message" if control else None


def find_excess(call: Callable[[], str | None], *, seconds: float, mib: int) -> str | None:
    """Return what is wrong according to `call`, or that it needs more time or memory than this.

    Memory counts from the most that this process has used so far.
    """

    def interrupt(*_: object) -> None:
        raise _TimeLimit

    previous = signal.signal(signal.SIGALRM, interrupt)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        fault = call()
    except _TimeLimit:
        fault = f"longer than {seconds:g} s"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
    return fault or (f"{growth:,} MiB of memory" if growth > mib else None)


class _TimeLimit(BaseException):
    """Raised by the alarm; no handler of errors takes it for one."""


def run_command(
    *args: object,
    folder: Path,
    env: Mapping[str, str] | None = None,
    time_limit: float = 300,
) -> Outcome:
    """Run `esrjax ARGS` in `folder` with `env` added to the environment.

    A command that runs longer than `time_limit` seconds is killed and counts as hung.
    """
    command = [sys.executable, "-m", "esrjax", *map(str, args)]
    return _run_process(command, folder, env or {}, time_limit)


def run_shell(script: str, folder: Path, time_limit: float = 300) -> Outcome:
    """Run a script of `sh` in `folder`; see `run_command`."""
    return _run_process(["sh", "-c", script], folder, {}, time_limit)


def _run_process(
    command: Sequence[str], folder: Path, env: Mapping[str, str], time_limit: float
) -> Outcome:
    try:
        ended = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"hung: longer than {time_limit:g} s") from error
    return Outcome(
        code=ended.returncode,
        out=ended.stdout.decode(errors="replace"),
        err=ended.stderr.decode(errors="replace"),
    )
