"""Execution of users' PyTorch code on a CPU: redirected CUDA calls and reported errors."""

import contextlib
import sys
import traceback
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from esrjax.errors import UserError


class TorchCodeError(UserError):
    """Raised when the user's PyTorch code raises an error or imports a missing package."""


class CudaToCpu(TorchFunctionMode):
    """Context manager in which `.cuda()`, `.to("cuda")` and `device="cuda"` mean the CPU.

    Args:
        file: The user's Python file.
        notes: Set that receives a note for each line of code, in the folder of `file`, that
            requests CUDA.
    """

    def __init__(self, file: Path, notes: set[str]):
        super().__init__()
        self.file, self.notes = file, notes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        uses_cuda = func is torch.Tensor.cuda or any(map(_is_cuda, (*args, *kwargs.values())))
        if not uses_cuda:
            return func(*args, **kwargs)
        lines = _user_lines(traceback.extract_stack(), self.file)
        self.notes |= {f"{line}: CUDA requested, CPU used" for line in lines[-1:]}
        if func is torch.Tensor.cuda:
            return args[0]
        return func(
            *map(_cuda_to_cpu, args), **{key: _cuda_to_cpu(value) for key, value in kwargs.items()}
        )


def _is_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.partition(":")[0] == "cuda"


def _cuda_to_cpu(value: Any) -> Any:
    return "cpu" if _is_cuda(value) else value


@contextlib.contextmanager
def wrap_user_errors(file: Path, action: str) -> Generator[None]:
    """Report what the user's code raises as a `TorchCodeError` with the line that raised it.

    What the code prints is redirected to standard error, since standard output may be our JSON.

    Args:
        file: The user's Python file.
        action: What is being done with it, for the message: "Importing it".

    Raises:
        TorchCodeError: If the code raises an exception or calls `sys.exit`.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except ImportError as error:
        raise _missing_import_error(file, error) from error
    except (Exception, SystemExit) as error:
        raise _user_code_error(file, action, error) from error


def _missing_import_error(file: Path, error: ImportError) -> TorchCodeError:
    name = (error.name or str(error)).partition(".")[0]
    problem = f"needs {name!r}, which is not installed" if error.name else f"cannot import: {error}"
    return TorchCodeError(
        f"{file.name} {problem}",
        rule="the file is imported unchanged, on a CPU; packages that need CUDA cannot be imported",
        location=_innermost_line(error, file),
        remedy=f"install {name}, or use a copy of the file without it: a selective scan or a "
        "norm of a CUDA package has a plain PyTorch equivalent",
    )


def _user_code_error(file: Path, action: str, error: BaseException) -> TorchCodeError:
    needs_cuda = any(word in str(error) for word in ("CUDA", "cuda", "NVIDIA"))
    dtype_mismatch = "dtype" in str(error) or "Double" in str(error)
    if needs_cuda:
        remedy = "remove CUDA from the file, or use the device of the input (device=x.device)"
    elif dtype_mismatch:
        remedy = "use the dtype of the input: torch.zeros(..., dtype=x.dtype)"
    else:
        remedy = "fix the file, or its constructor arguments (--torch-args; --hparam of bench)"
    message = (str(error).strip() or "no message").splitlines()[0]
    return TorchCodeError(
        f"{action} raised {type(error).__name__}: {message}",
        rule="the PyTorch network is built and run on a CPU, in float64 and in float32",
        location=_innermost_line(error, file),
        remedy=remedy,
    )


def _innermost_line(error: BaseException, file: Path) -> str:
    """Return the innermost line of the user's code in the traceback."""
    return (_user_lines(traceback.extract_tb(error.__traceback__), file) or [str(file)])[-1]


def _user_lines(frames: traceback.StackSummary, file: Path) -> list[str]:
    """Return the frames in the file's folder as `FILE:LINE: CODE`, innermost last."""
    folder = file.resolve().parent
    return [
        f"{frame.filename}:{frame.lineno}: {frame.line}"
        for frame in frames
        if Path(frame.filename).resolve().is_relative_to(folder)
    ]
