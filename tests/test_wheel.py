"""What is in the wheel is all that is needed: it works where there is no checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = "esrjax plugins kernels configs pyproject.toml README.md LICENSE".split()
WHERE = """
from importlib import resources

import esrjax, esrjax_configs, esrjax_kernels, esrjax_plugins.span
from esrjax import registry
from esrjax.contest import rules
from esrjax.contest.report import page
from esrjax.model import open_method
from esrjax.network import ops

for package in (esrjax, esrjax_configs, esrjax_kernels, esrjax_plugins.span):
    print(package.__file__ or list(package.__path__)[0])
assert "<html" in page.render({"title": "a page"})
assert rules.load("ntire2026").teams["22"] == "XiaomiMM"
held = resources.files("esrjax_configs").iterdir()
assert sorted(path.name for path in held if path.suffix == ".toml") == CONFIGS
assert "not been measured" in ops.kernel("gated_residual").unproved()
shipped = [name for name in registry.names() if getattr(registry.method(name), "pretrained", None)]
for name in shipped:
    assert open_method(name).net
"""


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    options = "--quiet --no-deps --disable-pip-version-check --target"
    pip = [sys.executable, "-m", "pip", "install", *options.split(), folder / "site", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def run(away: Path, tmp_path: Path):
    """Python in an empty folder, without the editable installation: `-S` runs no `.pth` file."""
    libraries = sysconfig.get_paths()["purelib"]
    environment = {**os.environ, "PYTHONPATH": f"{away}:{libraries}"}

    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-S", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return python


def test_code_rules_recipes_and_weights_are_in_the_wheel(away: Path, run) -> None:
    configs = sorted(path.name for path in (ROOT / "configs").glob("*.toml"))
    assert "ntire2026.toml" in configs
    for line in run("-c", f"CONFIGS = {configs}\n{WHERE}").splitlines():
        assert line.startswith(f"{away}/"), line


def test_every_package_of_the_core_is_in_the_wheel(away: Path) -> None:
    packages = {file.parent.relative_to(ROOT) for file in (ROOT / "esrjax").rglob("__init__.py")}
    assert all((away / package / "__init__.py").is_file() for package in packages)


def test_the_command_works_from_the_wheel(away: Path, run) -> None:
    listed = run(str(away / "bin/esrjax"), "list")
    assert {"span", "spanv2"} <= {line.split()[0] for line in listed.splitlines()}


def test_nothing_of_the_checkout_comes_along_unasked(away: Path) -> None:
    packages = {path.name for path in away.iterdir() if path.is_dir()}
    info = {name for name in packages if name.endswith(".dist-info")}
    ours = {"bin", "esrjax", "esrjax_configs", "esrjax_kernels", "esrjax_plugins"}
    assert packages - info == ours and len(info) == 1
    assert not list(away.rglob("*.pth")) and not list(away.rglob("test_*"))
