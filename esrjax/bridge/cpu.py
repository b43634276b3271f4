"""Somebody else's PyTorch code on a CPU: what it asks of CUDA, and what it raises."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from esrjax.errors import UserError


class PeerFailed(UserError):
    """The user's PyTorch code raised an error, or needs what is not here."""


class OnlyCPU(TorchFunctionMode):
    """While it is open, `.cuda()`, `.to("cuda")` and `device="cuda"` mean the CPU.

    notes: gets one line for each line in the folder of `file` that asked.
    """

    def __init__(self, file: Path, notes: set[str]):
        super().__init__()
        self.file, self.notes = file, notes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        asked = func is torch.Tensor.cuda or any(map(_is_cuda, (*args, *kwargs.values())))
        if not asked:
            return func(*args, **kwargs)
        lines = _lines(traceback.extract_stack(), self.file)
        self.notes |= {f"{line}: CUDA was asked for, the CPU was taken" for line in lines[-1:]}
        if func is torch.Tensor.cuda:
            return args[0]
        return func(*map(_on_cpu, args), **{key: _on_cpu(value) for key, value in kwargs.items()})


def _is_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.partition(":")[0] == "cuda"


def _on_cpu(value: Any) -> Any:
    return "cpu" if _is_cuda(value) else value


@contextlib.contextmanager
def told(file: Path, doing: str) -> Generator[None]:
    """What `file` raises while `doing` it, as a mistake with its line and what can be done.

    What it prints goes to standard error: standard output is ours.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except ImportError as error:
        raise _missing(file, error) from error
    except (Exception, SystemExit) as error:
        raise _failed(file, doing, error) from error


def _missing(file: Path, error: ImportError) -> PeerFailed:
    name = (error.name or str(error)).partition(".")[0]
    what = f"needs {name!r}, which is not installed" if error.name else f"cannot import: {error}"
    return PeerFailed(
        f"{file.name} {what}",
        rule="the file is imported as it is, on a CPU; a package for CUDA alone cannot be",
        place=_line(error, file),
        remedy=f"install {name}, or give a copy of the file without it: a selective scan or a "
        "norm of a CUDA package has a plain PyTorch form",
    )


def _failed(file: Path, doing: str, error: BaseException) -> PeerFailed:
    cuda = any(word in str(error) for word in ("CUDA", "cuda", "NVIDIA"))
    types = "dtype" in str(error) or "Double" in str(error)
    if cuda:
        remedy = "leave CUDA out of the file, or let it follow the device of its input"
    elif types:
        remedy = "let it follow the precision of its input: torch.zeros(..., dtype=x.dtype)"
    else:
        remedy = "mend the file, or what it is built with (--torch-args, --size of bench)"
    first = (str(error).strip() or "nothing said").splitlines()[0]
    return PeerFailed(
        f"{doing} raised {type(error).__name__}: {first}",
        rule="the PyTorch network is built and run on a CPU, in double and in single precision",
        place=_line(error, file),
        remedy=remedy,
    )


def _line(error: BaseException, file: Path) -> str:
    """The innermost line of the user's that raised it."""
    return (_lines(traceback.extract_tb(error.__traceback__), file) or [str(file)])[-1]


def _lines(frames: traceback.StackSummary, file: Path) -> list[str]:
    """Those of the file's folder, `FILE:NUMBER: what it says`, innermost last."""
    folder = file.resolve().parent
    return [
        f"{frame.filename}:{frame.lineno}: {frame.line}"
        for frame in frames
        if Path(frame.filename).resolve().is_relative_to(folder)
    ]
