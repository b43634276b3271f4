"""Errors that a user can correct, and how the command line reports them."""

import difflib
import functools
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, Self

_MAX_PROBLEM, _MAX_PART = 1500, 400  # characters of a problem, of a rule, remedy or location


class UserError(Exception):
    """Raised when the user can correct the cause; the command line prints it without a traceback.

    Args:
        problem: One sentence with the offending value.
        rule: What is expected instead.
        remedy: What the user can do about it.
        location: The file, key or layer where the problem was found, if there is one.

    The arguments are also attributes; `str(error)` has one line for each. Names from files may be
    of any length and contain anything: texts are shortened, and control characters are escaped.
    """

    def __init__(self, problem: str, *, rule: str, remedy: str, location: str | None = None):
        self.problem = _bounded(problem, _MAX_PROBLEM, " \n")
        self.rule, self.remedy = _bounded(rule, _MAX_PART), _bounded(remedy, _MAX_PART)
        self.location = None if location is None else _bounded(location, _MAX_PART)
        lines = [self.problem, f"  rule:     {self.rule}", f"  remedy:   {self.remedy}"]
        if location is not None:
            lines.insert(1, f"  location: {self.location}")
        super().__init__("\n".join(lines))

    def with_location(self, location: str) -> Self:
        """Return the same error with the location of the problem, which its cause did not know."""
        return type(self)(self.problem, rule=self.rule, remedy=self.remedy, location=location)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the keyword arguments: errors also come from worker processes."""
        keywords = {"rule": self.rule, "remedy": self.remedy, "location": self.location}
        return functools.partial(type(self), **keywords), (self.problem,)


class NotFound(UserError):
    """Raised when a name or a path leads to nothing: a method, recipe, checkpoint, image."""


class DatasetNotFound(NotFound):
    """Raised when a dataset is neither a known name nor a folder of images."""


class InvalidArgument(UserError):
    """Raised when an argument or an option has a value that is not allowed."""


class UnreadableFile(UserError):
    """Raised when a file cannot be read, or its content is not what it should be."""


class IncompleteBatch(UserError):
    """Raised when some of several files could not be processed; the others were."""


class UnwritableFile(UserError):
    """Raised when a file or folder cannot be written, or exists and would be replaced."""


class DownloadError(UserError):
    """Raised when a file cannot be downloaded, or has another SHA-256."""


class MissingExtra(UserError):
    """Raised when an optional dependency is needed that is not installed."""


def import_extra(module: str, extra: str, purpose: str = "this") -> Any:
    """Import a module of an optional dependency.

    Args:
        module: Its name.
        extra: The extra of esrjax that has it.
        purpose: What needs it, the subject of the error's sentence: "reading a .pth file".

    Raises:
        MissingExtra: It is not installed; the remedy names the packages of the extra, so that it
            works for any installation of esrjax.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        from importlib import metadata

        marker = f'extra == "{extra}"'
        texts = [text for text in metadata.requires("esrjax") or () if marker in text]
        packages = " ".join(f'"{text.partition(";")[0].strip()}"' for text in texts)
        raise MissingExtra(
            f"{purpose} needs {module}, which is not installed",
            rule=f"{module} is an optional dependency, of the extra `{extra}`",
            remedy=f"pip install {packages}",
        ) from error


class PluginError(UserError):
    """Raised when a plugin or a kernel cannot be loaded, or declares what is not so."""


class WeightsMismatch(UserError):
    """Raised when the tensors of a checkpoint do not match the parameters of the network.

    Attributes:
        num_mismatches: Number of tensors and parameters that do not match.
    """

    num_mismatches: int = 0


class InvalidWeights(UserError):
    """Raised when a weight is no number that a network can have: NaN, or of a type like int8."""


class ImageTooSmall(UserError):
    """Raised when an image is smaller than a network or its self-ensemble allows."""


class DatasetError(UserError):
    """Raised when the images of a dataset do not form pairs of LR and HR."""


class IncomparableImages(UserError):
    """Raised when two images cannot be compared: their sizes differ, or are too small."""


class InvalidOutput(UserError):
    """Raised when the output of a network is not an image: NaN, or of a wrong size."""


class UncountedOp(UserError):
    """Raised when a trace contains a primitive that has no rule and is not free of cost."""


class RecipeError(UserError):
    """Raised when a recipe is invalid, or does not fit the network or the data."""


class CheckpointError(UserError):
    """Raised when a run cannot be resumed: its checkpoint is damaged, or its recipe differs."""


class Diverged(UserError):
    """Raised when a loss or a gradient is not finite during training."""


class TrainingFailed(UserError):
    """Raised when a training ends by a dead worker process, or by an error of unknown cause."""


class DistributedError(UserError):
    """Raised when processes of a training do not connect, end early, or cannot share a batch."""


class RulesError(UserError):
    """Raised when a file of challenge rules is invalid."""


class RankingError(UserError):
    """Raised when results cannot be ranked together."""


class SubmissionError(UserError):
    """Raised when a submission would be incomplete, or differs from the published weights."""


class TorchModelError(UserError):
    """Raised when PyTorch code cannot be imported or built, or does not take the weights."""


class TorchCompileError(UserError):
    """Raised when `torch.compile` fails."""


class ExportError(UserError):
    """Raised when a network cannot be exported, or its export computes something else."""


def suggest(name: str, names: Iterable[str], default: str) -> str:
    """Return the remedy for an unknown name: `did you mean 'span'?`, or `default`.

    Args:
        name: The unknown name; its case does not matter.
        names: The known names.
        default: The remedy if no known name is similar.
    """
    by_lower_case = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f"did you mean {by_lower_case[close[0]]!r}?" if close else default


def list_some(items: Iterable[object], limit: int = 5, separator: str = ", ") -> str:
    """Return the first items and the number of others: `a, b and 3 more`."""
    texts = [str(item) for item in items]
    if len(texts) <= limit:
        return separator.join(texts)
    joint = " " if separator == ", " else separator
    return f"{separator.join(texts[:limit])}{joint}and {len(texts) - limit} more"


def printable(text: str, allowed: str = " ") -> str:
    """Return text with what is not printable, such as control characters, as `\\x1b`."""
    return "".join(c if c.isprintable() or c in allowed else ascii(c)[1:-1] for c in text)


def shorten(text: str, limit: int) -> str:
    """Return a text of at most `limit` characters: of a longer one, its beginning and its end."""
    if len(text) <= limit:
        return text
    tail = limit // 4
    omission = f" ... ({len(text) - limit:,} characters) ... "
    return text[: limit - tail - len(omission)] + omission + text[-tail:]


def _bounded(text: str, limit: int, allowed: str = " ") -> str:
    return shorten(printable(shorten(text, limit), allowed), limit)


def error_summary(error: BaseException) -> str:
    """Return the class of an exception and the first line of its message."""
    try:
        message = (str(error).strip() or "no message").splitlines()[0]
    except Exception:  # `__str__` of a class that a plugin defines
        message = "no message"
    return f"{type(error).__name__}: {message}"


@functools.cache
def log_note(text: str) -> None:
    """Log, once per process, what was assumed, converted or left out; the result is still right.

    Unless the program configures the logger "esrjax", it is a line on standard error.
    """
    logging.getLogger("esrjax").warning("%s", _bounded(text, _MAX_PROBLEM))


def set_verbosity(*, quiet: bool = False, verbose: bool = False) -> None:
    """Set how much is printed to standard error, beside errors.

    Args:
        quiet: No notes; `is_quiet` tells the rest of the program.
        verbose: Every compilation of JAX, which must not have been imported, and tracebacks.
    """
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.NOTSET
    logging.getLogger("esrjax").setLevel(level)
    if verbose:
        os.environ.setdefault("JAX_LOG_COMPILES", "1")


def is_quiet() -> bool:
    """Return whether notes are not wanted: the logger "esrjax" has no warnings."""
    return not logging.getLogger("esrjax").isEnabledFor(logging.WARNING)


def _print_traceback() -> None:
    """Print the traceback of the exception that is handled, if everything is wanted."""
    if logging.getLogger("esrjax").isEnabledFor(logging.DEBUG):
        traceback.print_exc()


@contextmanager
def log_to_stderr() -> Generator[None]:
    """Print the notes of `log_note` to standard error within the block, as `note: TEXT`."""
    logger, handler = logging.getLogger("esrjax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False  # libraries add handlers to the root logger
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


def run_and_report_errors(run: Callable[[], None]) -> int:
    """Call `run` and return the exit code: 2 after a `UserError`, 130 after Ctrl-C, else 0.

    A `UserError` is printed to standard error without a traceback, and so is an `OSError` about a
    path, such as a name that is too long; other exceptions pass.
    """
    try:
        with log_to_stderr():
            run()
        return 0
    except UserError as error:
        _print_traceback()
        text, exit_code = str(error), 2
    except OSError as error:
        if error.filename is None:
            raise
        _print_traceback()
        text, exit_code = str(_path_error(error)), 2
    except KeyboardInterrupt:
        text, exit_code = "interrupted", 130
    print(f"esrjax: {text}", file=sys.stderr)
    return exit_code


def _path_error(error: OSError) -> UserError:
    return UserError(
        f"Cannot access '{error.filename}': {error.strerror}",
        rule="a path has names that the file system allows, in folders that the user may search",
        remedy="check the path and its permissions",
    )
