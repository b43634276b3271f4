"""The wheel is complete: it works without a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = "esrjax plugins kernels configs pyproject.toml README.md LICENSE".split()
SCRIPT = """
from importlib import resources

import esrjax, esrjax_configs, esrjax_kernels, esrjax_plugins.span
from esrjax import registry
from esrjax.challenge import rules
from esrjax.challenge import report
from esrjax.inference import open_method
from esrjax.nn import ops

for package in (esrjax, esrjax_configs, esrjax_kernels, esrjax_plugins.span):
    print(package.__file__ or list(package.__path__)[0])
assert "<html" in report.render_page({"title": "a page"})
assert rules.load_rules("ntire2026").teams["22"] == "XiaomiMM"
configs = resources.files("esrjax_configs").iterdir()
assert sorted(path.name for path in configs if path.suffix == ".toml") == CONFIGS
assert "not been tuned" in ops.find_kernel("gated_residual").disabled_reason()
for name in registry.names():
    if getattr(registry.get_entry(name), "pretrained", None):
        assert open_method(name).net
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which only the wheel is installed."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    options = "--quiet --no-deps --disable-pip-version-check --target"
    pip = [sys.executable, "-m", "pip", "install", *options.split(), folder / "site", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def run(site: Path, tmp_path: Path):
    """Run Python in an empty folder without the editable installation: `-S` runs no `.pth` file."""
    libraries = sysconfig.get_paths()["purelib"]
    environment = {**os.environ, "PYTHONPATH": f"{site}:{libraries}"}

    def python(*args: str) -> str:
        result = subprocess.run(
            [sys.executable, "-S", *args],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return python


def test_wheel_contains_code_rules_recipes_and_weights(site: Path, run) -> None:
    configs = sorted(path.name for path in (ROOT / "configs").glob("*.toml"))
    assert "ntire2026.toml" in configs
    for line in run("-c", f"CONFIGS = {configs}\n{SCRIPT}").splitlines():
        assert line.startswith(f"{site}/"), line


def test_wheel_contains_every_package(site: Path) -> None:
    packages = {file.parent.relative_to(ROOT) for file in (ROOT / "esrjax").rglob("__init__.py")}
    assert all((site / package / "__init__.py").is_file() for package in packages)


def test_command_works_from_the_wheel(site: Path, run) -> None:
    output = run(str(site / "bin/esrjax"), "method", "list")
    assert {"span", "spanv2"} <= {line.split()[0] for line in output.splitlines()}


def test_wheel_is_typed_and_has_one_version(site: Path, run) -> None:
    assert (site / "esrjax/py.typed").is_file()
    (info,) = site.glob("esrjax-*.dist-info")
    version = run("-c", "import esrjax; print(esrjax.__version__)").strip()
    assert info.name == f"esrjax-{version}.dist-info"
    assert run(str(site / "bin/esrjax"), "--version") == f"esrjax {version}\n"


def test_wheel_contains_nothing_else(site: Path) -> None:
    packages = {path.name for path in site.iterdir() if path.is_dir()}
    info = {name for name in packages if name.endswith(".dist-info")}
    own_packages = {"bin", "esrjax", "esrjax_configs", "esrjax_kernels", "esrjax_plugins"}
    assert packages - info == own_packages and len(info) == 1
    assert not list(site.rglob("*.pth")) and not list(site.rglob("test_*"))
