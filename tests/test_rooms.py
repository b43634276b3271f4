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

LOWER_PACKAGES = {"method", "registry", "network", "data", "evaluation"}
ALLOWED_IMPORTS = {  # of a package of esrjax, besides itself; packages not listed import anything
    "door": set(),
    "errors": set(),
    "schema": {"errors"},
    "transfer": {"errors"},
    "method": {"errors"},
    "cache": set(),
    "memory": set(),
    "published": {"cache", "errors", "method", "transfer"},
    "registry": {"door", "errors", "method"},
    "network": {"door", "errors", "method"},
    "data": {"errors", "schema"},
    "evaluation": {"errors", "schema", "data"},
    "recognition": {"errors", "method", "network"},
    "model": {"errors", "published", "recognition", *LOWER_PACKAGES},
    "training": {"errors", "published", "schema", "recognition", *LOWER_PACKAGES},
    "contest": {"errors", "schema", "model", "recognition", *LOWER_PACKAGES},
    "bridge": {"errors", "schema", "model", "recognition", *LOWER_PACKAGES},
    "testing": {"errors", "method", "network"},
}
TORCH_FILES = {
    "esrjax/network/archive.py",
    "esrjax/bridge/cpu.py",
    "esrjax/bridge/modes.py",
    "esrjax/bridge/peer.py",
    "esrjax/bridge/pytorch.py",
}


def relative_path(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """Yield the full names that a file imports: `esrjax.network.ops.Kernel`."""
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
        assert imported <= {"method", "network"}
    else:
        assert all(rest == ["network", "ops", "Kernel"] for rest in esrjax_imports(path))


@pytest.mark.parametrize("path", FILES, ids=relative_path)
def test_torch_and_plugins_are_not_imported(path):
    packages = {name.split(".")[0] for name in imports(path)}
    assert "torch" not in packages or relative_path(path) in TORCH_FILES
    assert not packages & {"esrjax_plugins", "esrjax_kernels"}


@pytest.mark.parametrize("module", ["esrjax", "esrjax.registry", "esrjax.cli"])
def test_import_does_not_import_jax(module):
    code = f"import sys, {module}; assert not sys.modules.keys() & {{'jax', 'flax', 'torch'}}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "package", ["network", "data", "evaluation", "training", "contest", "bridge"]
)
def test_modules_of_a_package_have_no_import_cycle(package):
    graph = {
        path.stem: {names[0] for top, *names in esrjax_imports(path) if top == package and names}
        for path in (ROOT / "esrjax" / package).glob("*.py")
    }
    TopologicalSorter(graph).prepare()
