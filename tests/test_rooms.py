"""Who may import whom."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(
    path for room in ("esrjax", "plugins", "kernels") for path in (ROOT / room).rglob("*.py")
)

UNDER = {"method", "registry", "network", "pictures"}
MAY = {  # what a room of esrjax may import beside itself; rooms not listed import anything
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
    "pictures": {"errors", "schema"},
    "recognition": {"errors", "method", "network"},
    "model": {"errors", "published", "recognition", *UNDER},
    "training": {"errors", "published", "schema", "recognition", *UNDER},
    "contest": {"errors", "schema", "model", "recognition", *UNDER},
    "bridge": {"errors", "schema", "model", "recognition", *UNDER},
    "testing": {"errors", "method", "network"},
}
TORCH = {
    "esrjax/network/archive.py",
    "esrjax/bridge/cpu.py",
    "esrjax/bridge/modes.py",
    "esrjax/bridge/peer.py",
    "esrjax/bridge/pytorch.py",
}


def named(path):
    return path.relative_to(ROOT).as_posix()


def imports(path):
    """What `path` imports, in full: `esrjax.network.ops.Kernel`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            yield from (
                ".".join([*above, *(node.module or "").split("."), a.name]) for a in node.names
            )


def of_esrjax(path):
    return [name.split(".")[1:] for name in imports(path) if name.split(".")[0] == "esrjax"]


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_room_imports_the_rooms_that_it_may(path):
    wing, *inner = path.relative_to(ROOT).with_suffix("").parts
    rooms = {room for room, *_ in of_esrjax(path)}
    if wing == "esrjax":
        assert rooms <= MAY.get(inner[0], rooms) | {inner[0]}
    elif wing == "plugins":
        assert rooms <= {"method", "network"}
    else:
        assert all(rest == ["network", "ops", "Kernel"] for rest in of_esrjax(path))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_torch_and_plugins_are_not_imported_by_name(path):
    packages = {name.split(".")[0] for name in imports(path)}
    assert "torch" not in packages or named(path) in TORCH
    assert not packages & {"esrjax_plugins", "esrjax_kernels"}


@pytest.mark.parametrize("door", ["esrjax", "esrjax.registry", "esrjax.cli"])
def test_the_front_door_opens_at_once(door):
    code = f"import sys, {door}; assert not sys.modules.keys() & {{'jax', 'flax', 'torch'}}"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("wing", ["network", "pictures", "training", "contest", "bridge"])
def test_rooms_of_a_wing_stand_on_each_other_without_circles(wing):
    stands_on = {
        path.stem: {inner[0] for room, *inner in of_esrjax(path) if room == wing and inner}
        for path in (ROOT / "esrjax" / wing).glob("*.py")
    }
    TopologicalSorter(stands_on).prepare()
