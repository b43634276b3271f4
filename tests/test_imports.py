"""Imports between packages: which are allowed, and no cycles."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path for package in ("esrjax", "plugins", "kernels") for path in (ROOT / package).rglob("*.py")
)

BASE = {"errors", "io", "method", "registry", "schema"}
MODELS = {
    *BASE,
    "nn",
    "data",
    "evaluation",
    "loading",
    "hub",
    "runtime",
    "inference",
}
ALLOWED_IMPORTS = {  # of a package of esrjax, besides itself; packages not listed import anything
    "errors": set(),
    "io": {"errors"},
    "schema": {"errors"},
    "method": {"errors"},
    "registry": {"errors", "io", "method"},
    "runtime": {"errors", "io"},
    "hub": {"errors", "io", "method"},
    "nn": BASE,
    "data": {"errors", "io", "schema"},
    "evaluation": {*BASE, "data"},
    "loading": {*BASE, "nn", "hub"},
    "inference": MODELS,
    "training": MODELS,
    "bench": MODELS,
    "challenge": {*MODELS, "bench"},
    "interop": {*MODELS, "bench"},
    "testing": {"errors", "method", "registry", "nn", "evaluation", "training"},
}
TORCH_FILES = {
    "esrjax/nn/checkpoint_io.py",
    "esrjax/interop/torch_model.py",
    "esrjax/interop/torch_optim.py",
    "esrjax/interop/torch_watch.py",
}


def relative_path(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """Yield the full names that a file imports: `esrjax.nn.ops.Kernel`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            yield from (
                ".".join([*parents, *(node.module or "").split("."), a.name]) for a in node.names
            )


def esrjax_imports(path):
    return [name.split(".")[1:] for name in imports(path) if name.split(".")[0] == "esrjax"]


@pytest.mark.parametrize("path", FILES, ids=relative_path)
def test_package_imports_allowed_packages_only(path):
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    imported = {package for package, *_ in esrjax_imports(path)}
    if top == "esrjax":
        assert imported <= ALLOWED_IMPORTS.get(rest[0], imported) | {rest[0]}
    elif top == "plugins":
        assert imported <= {"method", "nn"}
    else:
        assert all(rest[:2] == ["nn", "ops"] for rest in esrjax_imports(path))


@pytest.mark.parametrize("path", FILES, ids=relative_path)
def test_torch_and_plugins_are_not_imported(path):
    packages = {name.split(".")[0] for name in imports(path)}
    assert "torch" not in packages or relative_path(path) in TORCH_FILES
    assert not packages & {"esrjax_plugins", "esrjax_kernels"}


@pytest.mark.parametrize("module", ["esrjax", "esrjax.registry", "esrjax.cli"])
def test_import_does_not_import_jax(module):
    code = f"import sys, {module}; assert not sys.modules.keys() & {{'jax', 'flax', 'torch'}}"
    subprocess.run([sys.executable, "-c", code], check=True)


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_no_import_cycle():
    """Imports inside functions and under TYPE_CHECKING count too."""
    modules = {module_name(path): path for path in FILES if path.is_relative_to(ROOT / "esrjax")}
    graph = {
        name: {
            full_name if full_name in modules else full_name.rpartition(".")[0]
            for full_name in imports(path)
        }
        & modules.keys() - {name, "esrjax"}
        for name, path in modules.items()
    }
    TopologicalSorter(graph).prepare()
