"""Test configuration: strict dtypes and ranks, two host devices, fast compilation, fixtures."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

# Most of the time of the tests is compilation. XLA optimizes less here than for users, except in
# `make test-slow`, and a worker and the commands that it starts share executables.
_FLAGS = ["--xla_force_host_platform_device_count=2", "--xla_backend_optimization_level=0"]
if version("jax").startswith("0.10."):  # XLA aborts at a flag that it does not know
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Threads of XLA. Kernels are interpreted with a thread for each warpgroup, and warpgroups wait for
# each other: with fewer threads they would wait for ever.
os.environ.setdefault("NPROC", "8")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
_WORKER = os.environ.get("PYTEST_XDIST_WORKER")
for _variable in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):  # never the caches of the user
    if _WORKER is None:
        os.environ[_variable] = tempfile.mkdtemp(prefix="esrjax-tests-")
        atexit.register(shutil.rmtree, os.environ[_variable], ignore_errors=True)
    else:  # JAX does not write its files atomically: two workers do not share them
        os.environ[_variable] += f"/{_WORKER}"

_DEFAULT_REFERENCE = Path(__file__).resolve().parents[2] / "shared"
if "ESRJAX_REFERENCE" not in os.environ and _DEFAULT_REFERENCE.is_dir():
    os.environ["ESRJAX_REFERENCE"] = str(_DEFAULT_REFERENCE)

import gc
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import pytest
from hypothesis import settings

from esrjax.bench import timing
from esrjax.errors import MissingExtra
from esrjax.nn.functional import native_lowering

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

settings.register_profile("repeatable", derandomize=True)  # same examples in every run
settings.load_profile("repeatable")

collect_ignore = ["thirdparty"]  # a package of its own, which test_thirdparty.py installs

_skipped: list[str] = []
NO_TORCH = importlib.util.find_spec("torch") is None


def pytest_collection_finish() -> None:
    """Collect garbage rarely: by default a tenth of the time of the tests goes into it."""
    gc.freeze()  # modules and tests
    gc.set_threshold(50_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    """Lower every op to one op of XLA, which compiles several times faster than the users' forms.

    Tests that are marked `platform_lowering` run those forms.
    """
    with native_lowering(item.get_closest_marker("platform_lowering") is None):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """Skip a test that needs the extra `torch`, for example to read a .pth file, without it."""
    try:
        return (yield)
    except MissingExtra as error:
        if NO_TORCH and "of the extra `torch`" in str(error):
            pytest.skip("torch is not installed")
        raise


pytest_runtest_setup = pytest_runtest_call  # for what fixtures need


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    """Skip a module of tests that imports torch, without it."""
    report = yield
    if NO_TORCH and report.failed and "No module named 'torch'" in str(report.longrepr):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, "Skipped: torch is not installed")
    return report


@pytest.fixture(scope="session", autouse=True)
def few_timed_runs() -> Iterator[None]:
    """Time networks in two runs; tests/bench/test_timing.py is about their number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "MAX_RUNS", 2)
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    """The reference folder: official weights, goldens, images and raw results."""
    folder = os.environ.get("ESRJAX_REFERENCE")
    if not folder:
        pytest.skip("no reference folder: set ESRJAX_REFERENCE")
    return Path(folder)


@dataclass(frozen=True, kw_only=True)
class CommandResult:
    """Exit code, standard output and standard error of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def esrjax(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command line in this process: `esrjax("method", "list", "--json").json`."""
    from esrjax.cli import main

    def run(*args: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["esrjax", *map(str, args)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        if NO_TORCH and code and "of the extra `torch`" in captured.err:
            pytest.skip("torch is not installed")
        return CommandResult(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture(scope="session")
def pip_install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Installs a package with pip into a new folder: `pip_install(package) -> folder`."""

    def install(package: Path) -> Path:
        folder = tmp_path_factory.mktemp("pip-install")
        copy = shutil.copytree(package, folder / "source")  # setuptools leaves a build folder
        options = "--quiet --no-deps --no-build-isolation --disable-pip-version-check --target"
        command = [sys.executable, "-m", "pip", "install", *options.split(), folder / "site", copy]
        subprocess.run(command, check=True, capture_output=True)
        return folder / "site"

    return install


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a package on the path, as pip would: `package(name, source, group, entry_points)`.

    Its module is called `fake_NAME`; entry_points: name -> the object in the module.
    """
    modules: set[str] = set()

    def put(
        name: str, source: str, group: str, entry_points: dict[str, str], folder: str = "site"
    ) -> None:
        module, info = f"fake_{name}", tmp_path / folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info.parent / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{entry} = {module}:{attribute}" for entry, attribute in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
        modules.add(module)
        monkeypatch.syspath_prepend(info.parent)
        importlib.invalidate_caches()

    yield put
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture(scope="session")
def crumbs_site(pip_install: Callable[[Path], Path]) -> Path:
    """The folder in which the third-party package `crumbs` is installed."""
    return pip_install(Path(__file__).parent / "thirdparty")


@pytest.fixture
def crumbs(crumbs_site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The third-party package `crumbs`, on the path of this process and of its children."""
    monkeypatch.syspath_prepend(crumbs_site)
    monkeypatch.setenv("PYTHONPATH", str(crumbs_site), prepend=os.pathsep)
    importlib.invalidate_caches()
    return crumbs_site


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "no reference folder" in str(report.longrepr):
        _skipped.append(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped:
        terminalreporter.write_line(
            f"{len(_skipped)} tests skipped without a reference folder (ESRJAX_REFERENCE)"
        )
