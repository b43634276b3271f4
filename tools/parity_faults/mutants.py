"""Mutants: PyTorch twins with one planted fault each, and where in the network the fault is."""

import ast
import re
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from esrjax.interop import torch_model
from esrjax.interop.torch_model import TorchModel

HERE = Path(__file__).parent
TWINS = HERE.parents[1] / "tests/twins"
SHARED = ("parts", "swin")  # files of layers that several twins share


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A PyTorch twin that is mutated.

    Attributes:
        name: Name of its file and of the method.
        hparams: Hyperparameters of both networks.
        torch_args: Further arguments of the PyTorch class.
        jax_hparams: Further hyperparameters of the JAX network.
    """

    name: str
    hparams: Mapping[str, Any]
    torch_args: Mapping[str, Any] = field(default_factory=dict)
    jax_hparams: Mapping[str, Any] = field(default_factory=dict)

    def build(self, folder: Path) -> TorchModel:
        """Build the PyTorch network of a package of twins."""
        source = f"{folder / self.name}.py:Twin"
        return torch_model.build(
            torch_model.parse_source(source, {**self.hparams, **self.torch_args})
        )

    @cached_property
    def definitions(self) -> dict[str, "Definition"]:
        """Classes and functions that the network uses, by name."""
        available: dict[str, Definition] = {}
        for file in (*SHARED, self.name):  # the twin's own names last: they hide shared ones
            for node in ast.parse((TWINS / f"{file}.py").read_text()).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    available[node.name] = Definition(file=file, node=node)
        used, queue = dict[str, Definition](), ["Twin"]
        while queue:
            name = queue.pop()
            if name in available and name not in used:
                used[name] = available[name]
                queue += sorted(used[name].names)
        return used


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A class or function of the twins.

    Attributes:
        file: File that defines it, without suffix.
        node: Its syntax tree.
    """

    file: str
    node: ast.ClassDef | ast.FunctionDef

    @property
    def names(self) -> set[str]:
        """Names that it refers to."""
        return {node.id for node in ast.walk(self.node) if isinstance(node, ast.Name)}

    @property
    def is_class(self) -> bool:
        """Whether it is a class, and no function."""
        return isinstance(self.node, ast.ClassDef)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One planted fault.

    Attributes:
        kind: Name of its kind.
        twin: The twin.
        file: File that is changed, without suffix.
        start: Index in the file's text where the change begins.
        old: Text that is replaced.
        new: What replaces it.
        line: Number of the line.
        owners: Classes in whose code the fault is. A function belongs to the classes that call it.
        instance: "all" modules of the class have the fault, or the "last" one alone.
    """

    kind: str
    twin: Twin
    file: str
    start: int
    old: str
    new: str
    line: int
    owners: frozenset[str]
    instance: str

    def __str__(self) -> str:
        new = " ".join(self.new.split())
        old = " ".join(self.old.split())
        which = ", last instance" * (self.instance == "last")
        return f"{self.twin.name}: {self.file}.py, line {self.line}: `{old}` -> `{new}`{which}"


def read_kinds() -> dict[str, list[tuple[str, str]]]:
    """Return the pairs of pattern and replacement of every kind of fault."""
    kinds = tomllib.loads((HERE / "kinds.toml").read_text())["kind"]
    return {kind["name"]: [tuple(edit) for edit in kind["edits"]] for kind in kinds}


def find_faults(twin: Twin) -> Iterator[Fault]:
    """Yield the faults of a twin: every kind at every place."""
    model = twin.build(TWINS)
    counts: dict[str, int] = {}
    for module in model.module.modules():
        counts[type(module).__name__] = counts.get(type(module).__name__, 0) + 1
    for kind, edits in read_kinds().items():
        for pattern, replacement in edits:
            for file in (twin.name, *SHARED):
                text = (TWINS / f"{file}.py").read_text()
                for match in re.finditer(pattern, text, re.MULTILINE):
                    new = match.expand(replacement)
                    owners = _owners(twin, file, text.count("\n", 0, match.start()) + 1)
                    if owners is None or new == match[0]:
                        continue
                    fault = {
                        "kind": kind,
                        "twin": twin,
                        "file": file,
                        "start": match.start(),
                        "old": match[0],
                        "new": new,
                        "line": text.count("\n", 0, match.start()) + 1,
                        "owners": owners,
                    }
                    yield Fault(**fault, instance="all")
                    (owner,) = owners if len(owners) == 1 else [None]
                    if owner is not None and counts.get(owner, 0) > 1:
                        yield Fault(**fault, instance="last")


def _owners(twin: Twin, file: str, line: int) -> frozenset[str] | None:
    """Return the classes whose code contains a line; all, of a constant; None if it is not used."""
    used = twin.definitions
    for name, definition in used.items():
        node = definition.node
        if definition.file == file and node.lineno <= line <= (node.end_lineno or 0):
            return frozenset([name]) if definition.is_class else _callers(twin, name)
    nodes = ast.parse((TWINS / f"{file}.py").read_text()).body
    constants = (node for node in nodes if isinstance(node, ast.Assign))
    if any(node.lineno <= line <= (node.end_lineno or 0) for node in constants):
        names = {n.id for node in nodes if isinstance(node, ast.Assign) for n in node.targets}
        users = [name for name, definition in used.items() if names & definition.names]
        return frozenset().union(*(_callers(twin, name) for name in users)) or None
    return None


def _callers(twin: Twin, name: str) -> frozenset[str]:
    """Return the classes that use a name, directly or through functions."""
    if twin.definitions[name].is_class:
        return frozenset([name])
    users = [n for n, definition in twin.definitions.items() if name in definition.names - {n}]
    return frozenset().union(*(_callers(twin, user) for user in users))


# --- mutated networks ---


def build_mutant(
    fault: Fault, folder: Path, changes: Callable[[TorchModel], bool]
) -> tuple[TorchModel, set[str]]:
    """Return the network with a fault, and the paths of the modules that have it.

    Args:
        fault: The fault. Of instance "last", the last instance where it changes something: a line
            may be one that only some instances execute.
        folder: A new folder for the mutated package, whose name must be unique in this process.
        changes: Whether a network differs in any bit from the twin without a fault.

    Raises:
        TorchModelError: If the network cannot be built.
    """
    shutil.copytree(TWINS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HERE / "layers.py", folder / "faults.py")
    path = folder / f"{fault.file}.py"
    text = path.read_text()
    end = fault.start + len(fault.old)
    text = text[: fault.start] + fault.new + text[end:]
    marker = "from torch.nn import functional\n"
    if marker not in text:
        marker = "from torch import nn\n"
    path.write_text(text.replace(marker, f"{marker}from . import faults\n", 1))
    mutant = fault.twin.build(folder)
    paths = {
        path
        for path, module in mutant.module.named_modules()
        if fault.owners & {cls.__name__ for cls in type(module).__mro__}
    }
    if fault.instance == "all":
        return mutant, paths
    last_paths = [path for path, _ in mutant.module.named_modules() if path in paths][::-1]
    for path in (*last_paths, last_paths[0]):
        model = fault.twin.build(TWINS)
        parent, _, name = path.rpartition(".")
        setattr(model.module.get_submodule(parent), name, mutant.module.get_submodule(path))
        model.module.eval()
        if changes(model):
            break
    return model, {path}


def place_of(path: str, module: Any) -> str:
    """Return the path of the innermost module, around a path, whose class a twin defines."""
    while path:
        cls = type(module.get_submodule(path))
        if not cls.__module__.startswith("torch.") and not cls.__module__.endswith(".faults"):
            return path
        path = path.rpartition(".")[0]
    return path
