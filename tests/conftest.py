"""One hostile harness for all tests: strict dtypes and ranks, two devices, warnings are errors."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" not in os.environ:  # commands that tests start share what they compile
    for cache in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):  # and nothing is of the user's
        os.environ[cache] = tempfile.mkdtemp(prefix="esrjax-tests-")
        atexit.register(shutil.rmtree, os.environ[cache], ignore_errors=True)

_BESIDE = Path(__file__).resolve().parents[2] / "shared"
if "ESRJAX_REFERENCE" not in os.environ and _BESIDE.is_dir():
    os.environ["ESRJAX_REFERENCE"] = str(_BESIDE)

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_enable_compilation_cache", False)  # but tests compile for themselves
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("repeatable", derandomize=True)  # a change breaks a test, not a draw
settings.load_profile("repeatable")

collect_ignore = ["thirdparty"]  # a package of its own, which test_thirdparty.py installs

_skipped: list[str] = []


@pytest.fixture(scope="session")
def reference() -> Path:
    """The reference folder: official weights, goldens, pictures and raw results."""
    folder = os.environ.get("ESRJAX_REFERENCE")
    if not folder:
        pytest.skip("no reference folder: set ESRJAX_REFERENCE")
    return Path(folder)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def esrjax(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line in this process: `esrjax("list", "--json").json`."""
    from esrjax.cli import main

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["esrjax", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        said = capsys.readouterr()
        return Said(code=code, out=said.out, err=said.err)

    return run


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Installs a package with pip into a folder of its own: `installed(package) -> folder`."""

    def install(package: Path) -> Path:
        folder = tmp_path_factory.mktemp("installed")
        copy = shutil.copytree(package, folder / "source")  # setuptools leaves a build folder
        options = "--quiet --no-deps --no-build-isolation --disable-pip-version-check --target"
        command = [sys.executable, "-m", "pip", "install", *options.split(), folder / "site", copy]
        subprocess.run(command, check=True, capture_output=True)
        return folder / "site"

    return install


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a package on the path, as pip would: `package(name, source, group, entries)`.

    Its module is called `fake_NAME`; entries: name of an entry point -> what it is in the module.
    """
    written: set[str] = set()

    def put(name: str, source: str, group: str, entries: dict[str, str], place: str = "site"):
        module, info = f"fake_{name}", tmp_path / place / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info.parent / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{entry} = {module}:{what}" for entry, what in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
        written.add(module)
        monkeypatch.syspath_prepend(info.parent)
        importlib.invalidate_caches()

    yield put
    for module in written:
        sys.modules.pop(module, None)


@pytest.fixture(scope="session")
def bakery(installed: Callable[[Path], Path]) -> Path:
    """The folder in which the third-party package `crumbs` is installed."""
    return installed(Path(__file__).parent / "thirdparty")


@pytest.fixture
def crumbs(bakery: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The third-party package on the path of this process and of those it starts."""
    monkeypatch.syspath_prepend(bakery)
    monkeypatch.setenv("PYTHONPATH", str(bakery))
    importlib.invalidate_caches()
    return bakery


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "no reference folder" in str(report.longrepr):
        _skipped.append(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped:
        terminalreporter.write_line(
            f"{len(_skipped)} checks skipped for want of a reference folder (ESRJAX_REFERENCE)"
        )
