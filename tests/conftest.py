"""One hostile harness for all tests: strict dtypes and ranks, two devices, warnings are errors."""

import os
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

_BESIDE = Path(__file__).resolve().parents[2] / "shared"
if "ESRJAX_REFERENCE" not in os.environ and _BESIDE.is_dir():
    os.environ["ESRJAX_REFERENCE"] = str(_BESIDE)

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_skipped: list[str] = []


@pytest.fixture(scope="session")
def reference() -> Path:
    """The reference folder: official weights, goldens, pictures and raw results."""
    folder = os.environ.get("ESRJAX_REFERENCE")
    if not folder:
        pytest.skip("no reference folder: set ESRJAX_REFERENCE")
    return Path(folder)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and "no reference folder" in str(report.longrepr):
        _skipped.append(report.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _skipped:
        terminalreporter.write_line(
            f"{len(_skipped)} checks skipped for want of a reference folder (ESRJAX_REFERENCE)"
        )
