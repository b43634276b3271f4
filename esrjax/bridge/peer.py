"""A PyTorch network from a user's own file: a class, built and given its weights, on the CPU."""

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from esrjax.bridge.cpu import OnlyCPU, told
from esrjax.errors import UserError
from esrjax.network.archive import Tensors
from esrjax.network.weights import SHOWN

_OURS = ("esrjax", "__main__")


class NoPeer(UserError):
    """Words that name no PyTorch class, or not what it is built with."""


class PeerMismatch(UserError):
    """Weights, or pictures, that do not fit the PyTorch network."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a PyTorch class is, and the keyword arguments that it is built with."""

    file: Path
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def home(self) -> Path:
        """The outermost package of the file, or its folder."""
        folder, names = _package(self.file)
        return folder / names[0] if len(names) > 1 else folder


@dataclass(frozen=True, kw_only=True, eq=False)
class Peer:
    """A PyTorch network in eval mode. notes: what was changed so that it runs on a CPU."""

    module: Any
    source: Source
    notes: set[str]

    @property
    def siblings(self) -> list[Path]:
        """The files beside it that have been imported."""
        home, file = self.source.home, self.source.file.resolve()
        theirs = [m for name, m in sys.modules.items() if not name.startswith(_OURS)]
        files = {Path(f) for module in theirs if (f := _file(module)) is not None}
        # Some modules of PyTorch say that they are files in the current folder.
        known = {f.resolve() for f in files if f.is_absolute() and "site-packages" not in f.parts}
        return sorted(f for f in known - {file} if f.is_relative_to(home))


def source(words: str, arguments: Mapping[str, Any]) -> Source:
    """`FILE.py:Class` as a source."""
    file, colon, name = words.rpartition(":")
    if not (colon and name.isidentifier()):
        raise NoPeer(
            f"{words!r} names no PyTorch class",
            rule="a PyTorch network is a file and a class in it: FILE.py:Class",
            remedy=f"write for instance {file or words}:Net",
        )
    if not Path(file).is_file():
        raise NoPeer(
            f"there is no file {file!r}",
            rule="a PyTorch network is a file and a class in it: FILE.py:Class",
            remedy="check the path",
        )
    return Source(file=Path(file), name=name, arguments=dict(arguments))


def build(where: Source, seed: int = 0) -> Peer:
    """The network of a source. Its code runs: only give a file that you trust."""
    notes: set[str] = set()
    with torch.random.fork_rng(devices=[]), _path(where.file):
        torch.manual_seed(seed)
        return Peer(module=_built(where, notes).eval(), source=where, notes=notes)


def _built(where: Source, notes: set[str]) -> Any:
    with OnlyCPU(where.file, notes):
        with told(where.file, "importing it"):
            kind = _kind(_module(where.file), where)
        _require_arguments(kind, where)
        with told(where.file, f"building {where.name}"):
            return kind(**where.arguments)


def fill(peer: Peer, held: Tensors, unused: Mapping[str, str], place: str) -> None:
    """Give the network the weights `held`, or raise `PeerMismatch` with all that do not fit.

    unused: globs of tensors that may be missing; the network keeps its own.
    """
    problems = misfits(peer, held, unused)
    if problems:
        more = f"\n    and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise PeerMismatch(
            f"{len(problems)} tensors do not fit {peer.source.name}:\n    "
            + "\n    ".join(problems[:SHOWN])
            + more,
            rule="both networks read the same weights, every tensor of them",
            place=f"{place} and {peer.source.file}",
            remedy="check the class and what it is built with (--torch-args); nothing was compared",
        )
    state = {key: torch.tensor(value) for key, value in held.items()}
    peer.module.load_state_dict(state, strict=False)  # what is missing was judged above


def misfits(peer: Peer, held: Tensors, unused: Mapping[str, str]) -> list[str]:
    """One line for each tensor that is missing, misshapen or has no place in the network."""
    wanted = {key: tuple(value.shape) for key, value in peer.module.state_dict().items()}
    lines = [
        f"not in the weights: {key} {shape}"
        for key, shape in wanted.items()
        if key not in held and not any(fnmatchcase(key, glob) for glob in unused)
    ]
    for key, value in held.items():
        if key not in wanted:
            near = difflib.get_close_matches(key, wanted, n=1, cutoff=0.85)
            hint = f" (is it {near[0]}?)" if near else ""
            lines.append(f"not in the PyTorch network: {key} {value.shape}{hint}")
        elif wanted[key] != value.shape:
            lines.append(f"misshapen: {key} is {value.shape}, PyTorch has {wanted[key]}")
    return lines


# --- importing ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _path(file: Path) -> Generator[None]:
    """As in a script that lies beside the package of the file, started here."""
    before = sys.path[:]
    sys.path[:0] = [str(_package(file)[0]), str(Path.cwd())]
    try:
        yield
    finally:
        sys.path[:] = before


def _package(file: Path) -> tuple[Path, list[str]]:
    """The folder that holds the outermost package of the file, and the names below it."""
    file = file.resolve()
    folder, names = file.parent, [file.stem]
    while (folder / "__init__.py").is_file():
        folder, names = folder.parent, [folder.name, *names]
    return folder, names


def _file(module: ModuleType) -> str | None:
    return getattr(module, "__file__", None)


def _module(file: Path) -> ModuleType:
    _, names = _package(file)
    if len(names) > 1:
        return _require_file(importlib.import_module(".".join(names)), file)
    # Under a name of its own: files of one name in several folders are not each other.
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


def _require_file(module: ModuleType, file: Path) -> ModuleType:
    found = _file(module)
    if found is not None and Path(found).samefile(file):
        return module
    raise NoPeer(
        f"{module.__name__} is {found}, not {file}",
        rule="one process imports one package of a name",
        place=str(file),
        remedy="compare each checkout in a process of its own, and do not install the package",
    )


def _kind(module: ModuleType, where: Source) -> Any:
    found = getattr(module, where.name, None)
    if inspect.isclass(found) and issubclass(found, torch.nn.Module):
        return found
    kinds = [
        name
        for name, held in vars(module).items()
        if inspect.isclass(held)
        and issubclass(held, torch.nn.Module)
        and held.__module__ == module.__name__
    ]
    near = difflib.get_close_matches(where.name, kinds, n=1)
    raise NoPeer(
        f"{where.file.name} has no torch.nn.Module {where.name!r}",
        rule=f"the class is one of the file: {', '.join(kinds) or 'it has none'}",
        place=str(where.file),
        remedy=f"did you mean {near[0]!r}?" if near else "name one of these",
    )


def _require_arguments(kind: Any, where: Source) -> None:
    signature = inspect.signature(kind)
    try:
        signature.bind(**where.arguments)
    except TypeError as error:
        raise NoPeer(
            f"{where.name} cannot be built: {error}",
            rule=f"it is built as {where.name}{signature}",
            place=str(where.file),
            remedy="give its arguments, for instance --torch-args '{\"channels\": 28}', "
            "or --size channels=28 of bench",
        ) from error
