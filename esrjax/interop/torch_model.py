"""`TorchModel`, a PyTorch network from a user's file: import, construction, loading of weights.

The code runs on a CPU: CUDA calls are redirected, and errors are reported with the user's line.
"""

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from esrjax.errors import TorchModelError, UserError, error_summary, list_some, suggest
from esrjax.io import matches_any
from esrjax.nn.checkpoint_io import StateDict

MAX_LISTED = 10  # tensors in an error
MAX_CALLERS = 3  # lines of the user's code that led to an error, besides the one that raised it

# --- the user's code on a CPU ---


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
        if func is not torch.Tensor.cuda and not any(map(_is_cuda, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        lines = _user_lines(traceback.extract_stack(), self.file)
        self.notes |= {f"{line}: CUDA requested, CPU used" for line in lines[-1:]}
        if func is torch.Tensor.cuda:
            return args[0]
        cpu_kwargs = {key: "cpu" if _is_cuda(value) else value for key, value in kwargs.items()}
        return func(*("cpu" if _is_cuda(value) else value for value in args), **cpu_kwargs)


def _is_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.partition(":")[0] == "cuda"


@contextlib.contextmanager
def wrap_user_errors(file: Path, action: str) -> Generator[None]:
    """Report what the user's code raises as a `TorchModelError` with the line that raised it.

    What the code prints is redirected to standard error, since standard output may be our JSON.

    Args:
        file: The user's Python file.
        action: What is being done with it, for the message: "Importing it".

    Raises:
        TorchModelError: If the code raises an exception or calls `sys.exit`.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _user_code_error(file, action, error) from error


def _user_code_error(file: Path, action: str, error: BaseException) -> TorchModelError:
    """Return the error for an exception, with the innermost line of the user's code."""
    problem = f"{action} raised {error_summary(error)}"
    rule = "the PyTorch network is built and run on a CPU, in float64 and in float32"
    remedy = "fix the file, or its constructor arguments (--torch-args; --hparam of bench)"
    if isinstance(error, ImportError):
        problem = f"{file.name} cannot import: {error}"
        rule = (
            "the file is imported unchanged, on a CPU; packages that need CUDA cannot be imported"
        )
        remedy = "correct the import"
        if "relative import" in str(error):
            remedy = f"create an empty __init__.py beside {file.name}, so that it is in a package"
        elif error.name:
            name = error.name.partition(".")[0]
            problem = f"{file.name} needs {name!r}, which is not installed"
            remedy = f"install {name}, or use a copy of the file without it: a selective scan or a "
            remedy += "norm of a CUDA package has a plain PyTorch equivalent"
    elif any(word in str(error) for word in ("CUDA", "cuda", "NVIDIA")):
        remedy = "remove CUDA from the file, or use the device of the input (device=x.device)"
    elif "dtype" in str(error) or "Double" in str(error):
        remedy = "use the dtype of the input: torch.zeros(..., dtype=x.dtype)"
    lines = _user_lines(traceback.extract_tb(error.__traceback__), file) or [str(file)]
    callers = (f"\n    called from {line}" for line in lines[-2 : -2 - MAX_CALLERS : -1])
    location = lines[-1] + "".join(callers)
    return TorchModelError(problem, rule=rule, location=location, remedy=remedy)


def _user_lines(frames: traceback.StackSummary, file: Path) -> list[str]:
    """Return the frames in the file's folder as `FILE:LINE: CODE`, innermost last."""
    folder = file.resolve().parent
    return [
        f"{frame.filename}:{frame.lineno}: {frame.line}"
        for frame in frames
        if Path(frame.filename).resolve().is_relative_to(folder)
    ]


# --- networks ---


@dataclass(frozen=True, kw_only=True)
class TorchSource:
    """A class `torch.nn.Module` in a user's file.

    Attributes:
        file: The Python file; it may belong to a package.
        class_name: Name of the class in it.
        kwargs: Keyword arguments of its constructor.
    """

    file: Path
    class_name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True, eq=False)
class TorchModel:
    """A PyTorch network on the CPU, in eval mode.

    Attributes:
        module: The `torch.nn.Module`.
        source: Where its class is.
        notes: Lines of its code that request CUDA; they ran on the CPU instead.
    """

    module: Any
    source: TorchSource
    notes: set[str]

    @property
    def local_imports(self) -> list[Path]:
        """Imported files of the same package or folder; they determine the network as well."""
        folder, names = _package_of(self.source.file)
        root = folder / names[0] if len(names) > 1 else folder
        modules = [m for n, m in sys.modules.items() if not n.startswith(("esrjax", "__main__"))]
        files = {Path(file) for module in modules if (file := getattr(module, "__file__", None))}
        # Some modules of PyTorch have a relative `__file__`, as if in the current folder.
        files = {f.resolve() for f in files if f.is_absolute() and "site-packages" not in f.parts}
        return sorted(f for f in files - {self.source.file.resolve()} if f.is_relative_to(root))


def parse_source(text: str, kwargs: Mapping[str, Any]) -> TorchSource:
    """Parse `FILE.py:Class`.

    Args:
        text: Path and class name, separated by the last colon.
        kwargs: Keyword arguments of the class's constructor.

    Raises:
        TorchModelError: If there is no such file, or no class name.
    """
    file, colon, class_name = text.rpartition(":")
    if colon and class_name.isidentifier():
        if Path(file).is_file():
            return TorchSource(file=Path(file), class_name=class_name, kwargs=dict(kwargs))
        problem, remedy = f"No such file: {file!r}", "check the path"
    else:
        problem = f"{text!r} is not of the form FILE.py:Class"
        remedy = f"write for instance {file or text}:Net"
    rule = "a PyTorch network is given as a file and a class in it: FILE.py:Class"
    raise TorchModelError(problem, rule=rule, remedy=remedy)


def build(source: TorchSource, seed: int = 0) -> TorchModel:
    """Import the file and build the network with random weights, in eval mode.

    The file's code is executed: use only files that you trust. It can import what is next to its
    outermost package, and in the current folder.

    Args:
        source: File, class and constructor arguments.
        seed: Seed of PyTorch's generator for the random weights; the global generator is not
            changed.

    Raises:
        TorchModelError: If the file has no such class, the arguments do not fit, or importing or
            building raises an error.
    """
    notes: set[str] = set()
    sys_path = [str(_package_of(source.file)[0]), str(Path.cwd()), *sys.path]
    with (
        torch.random.fork_rng(devices=[]),
        mock.patch.object(sys, "path", sys_path),
        CudaToCpu(source.file, notes),
    ):
        torch.manual_seed(seed)
        with wrap_user_errors(source.file, "Importing it"):
            cls = _find_class(_import_module(source.file), source)
        _check_kwargs(cls, source)
        with wrap_user_errors(source.file, f"Building {source.class_name}"):
            module = cls(**source.kwargs)
        return TorchModel(module=module.eval(), source=source, notes=notes)


def load_state_dict(
    model: TorchModel, state_dict: StateDict, optional_keys: Mapping[str, str], location: str
) -> None:
    """Load weights into the network, if all of them fit.

    Args:
        model: The network.
        state_dict: Weights under PyTorch's names.
        optional_keys: Globs of tensors that may be missing (`Method.unused_torch_keys`); the
            network keeps its own values.
        location: Where the weights are from, for the error message.

    Raises:
        TorchModelError: If any tensor is missing, unexpected or of another shape; lists them.
    """
    mismatches = state_dict_mismatches(model, state_dict, optional_keys)
    if mismatches:
        raise TorchModelError(
            f"{len(mismatches)} tensors do not fit {model.source.class_name}:\n    "
            + list_some(mismatches, MAX_LISTED, "\n    "),
            rule="both networks load the same weights, every tensor of them",
            location=f"{location} and {model.source.file}",
            remedy="check the class and its arguments (--torch-args); nothing was compared",
        )
    tensors = {key: torch.tensor(value) for key, value in state_dict.items()}
    model.module.load_state_dict(tensors, strict=False)  # missing keys were checked above


def state_dict_mismatches(
    model: TorchModel, state_dict: StateDict, optional_keys: Mapping[str, str]
) -> list[str]:
    """Return one line for each tensor that is missing, unexpected or of another shape."""
    torch_shapes = {key: tuple(value.shape) for key, value in model.module.state_dict().items()}
    lines = [
        f"not in the weights: {key} {shape}"
        for key, shape in torch_shapes.items()
        if key not in state_dict and not matches_any(key, optional_keys)
    ]
    for key, value in state_dict.items():
        if key not in torch_shapes:
            close_matches = difflib.get_close_matches(key, torch_shapes, n=1, cutoff=0.85)
            hint = f" (is it {close_matches[0]}?)" if close_matches else ""
            lines.append(f"not in the PyTorch network: {key} {value.shape}{hint}")
        elif torch_shapes[key] != value.shape:
            lines.append(f"shape: {key} is {value.shape}, PyTorch has {torch_shapes[key]}")
    return lines


# --- imports ---


def _package_of(file: Path) -> tuple[Path, list[str]]:
    """Return the folder above the file's outermost package, and the dotted name's components."""
    file = file.resolve()
    folder, names = file.parent, [file.stem]
    while (folder / "__init__.py").is_file():
        folder, names = folder.parent, [folder.name, *names]
    return folder, names


def _import_module(file: Path) -> ModuleType:
    _, names = _package_of(file)
    if len(names) > 1:
        module = importlib.import_module(".".join(names))
        if module.__file__ is None or not Path(module.__file__).samefile(file):
            raise TorchModelError(
                f"{module.__name__} is {module.__file__}, not {file}",
                rule="a process can import only one package of a name",
                location=str(file),
                remedy="compare each checkout in its own process, and uninstall the package",
            )
        return module
    # A unique name in `sys.modules`: two folders may have files of the same name.
    name = f"{names[0]}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find_class(module: ModuleType, source: TorchSource) -> Any:
    classes = {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, torch.nn.Module)
    }
    if source.class_name in classes:
        return classes[source.class_name]
    names = [name for name, cls in classes.items() if cls.__module__ == module.__name__]
    raise TorchModelError(
        f"{source.file.name} has no torch.nn.Module {source.class_name!r}",
        rule=f"the class is defined in the file; it has: {', '.join(names) or 'none'}",
        location=str(source.file),
        remedy=suggest(source.class_name, names, "use one of these"),
    )


def _check_kwargs(cls: Any, source: TorchSource) -> None:
    signature = inspect.signature(cls)
    try:
        signature.bind(**source.kwargs)
    except TypeError as error:
        raise TorchModelError(
            f"{source.class_name} cannot be built: {error}",
            rule=f"its signature is {source.class_name}{signature}",
            location=str(source.file),
            remedy="give its arguments, for instance --torch-args '{\"channels\": 28}', "
            "or --hparam channels=28 of bench",
        ) from error
