"""`ParityReport`, a parity result with everything needed to verify it; its files; verification.

A report holds the request, the results, SHA-256 of all inputs and the versions of packages. It is
a JSON file, or stored in the metadata of the .safetensors checkpoint that it is about.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from esrjax import io
from esrjax.errors import UnreadableFile
from esrjax.interop import parity
from esrjax.interop.array_diff import FLOAT32_RTOL, FLOAT64_RTOL, OptimizerPair
from esrjax.interop.parity import IMPORT_PREFIX, ParityRequest, ParityResult
from esrjax.method import Form
from esrjax.nn import checkpoint_io
from esrjax.schema import STRICT, bullet_list, format_errors

PACKAGES = ("esrjax", "jax", "flax", "optax", "numpy", "torch")


@pydantic_dataclass(frozen=True, kw_only=True, config=STRICT)
class ParityReport:
    """A parity request, its result and what the result depends on.

    Attributes:
        format: Version of this file format. In version 1 one set of weights was compared; such a
            report is read, but cannot be verified.
        request: What was compared.
        form: Form of the JAX network, "train" or "deploy".
        passed: Whether every check passed.
        checks: Name of every check, and whether it passed.
        hashes: SHA-256 of weights, files and images, see `hash_inputs`.
        checkpoint_sha256: SHA-256 of the checkpoint file at the time; it is not verified, since
            writing the report into the checkpoint changes it.
        versions: Versions of Python and of packages.
        tolerances: Relative tolerances in float32 and float64, see docs/interop.md.
        results: All results, as `LiveComparison.as_dict` or `GoldenComparison.as_dict` gives them.
    """

    format: Literal[1, 2] = 2
    request: ParityRequest
    form: Form
    passed: bool
    checks: Mapping[str, bool]
    hashes: Mapping[str, str]
    checkpoint_sha256: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    tolerances: Mapping[str, float] = field(default_factory=dict[str, float])
    results: Mapping[str, Any] = field(default_factory=dict[str, Any])


_ADAPTER = TypeAdapter(ParityReport)


def make_report(request: ParityRequest, result: ParityResult) -> ParityReport:
    """Return the report of a parity result.

    Args:
        request: What was compared.
        result: Result of `parity.run`.
    """
    file = request.checkpoint
    return ParityReport(
        request=request,
        form=result.form,
        passed=result.comparison.passed,
        checks=result.comparison.checks,
        hashes=result.hashes,
        checkpoint_sha256=checkpoint_io.read_checkpoint(file).sha256 if file else None,
        versions=_versions(),
        tolerances={"float32": FLOAT32_RTOL, "float64": FLOAT64_RTOL},
        results=result.comparison.as_dict(),
    )


def _versions() -> dict[str, str]:
    installed = {dist.name for dist in metadata.distributions()}
    versions = {name: metadata.version(name) for name in PACKAGES if name in installed}
    return {"python": platform.python_version(), **versions}


# --- files ---


def read(path: Path) -> ParityReport:
    """Read a report.

    Args:
        path: A .json, or a .safetensors whose metadata contains a report.

    Raises:
        UnreadableFile: If the file cannot be read or contains no valid report.
    """
    try:
        if path.suffix != ".safetensors":
            return _ADAPTER.validate_json(io.read_bytes(path))
        checkpoint_metadata = checkpoint_io.read_checkpoint(path).metadata
        if checkpoint_metadata is None or checkpoint_metadata.parity_report is None:
            raise _bad_report(path, "its metadata contains none")
        return _ADAPTER.validate_json(json.dumps(checkpoint_metadata.parity_report))
    except OSError as error:
        raise _bad_report(path, error.strerror or str(error)) from error
    except ValidationError as error:
        raise _bad_report(
            path, bullet_list(format_errors(error, _ADAPTER.json_schema()))
        ) from error


def _bad_report(path: Path, reason: str, *, write: bool = False) -> UnreadableFile:
    action = "write a parity report to" if write else "read a parity report from"
    return UnreadableFile(
        f"Cannot {action} {path.name}: {reason}",
        rule="a parity report is a .json, or in the metadata of the .safetensors that it is about",
        location=str(path),
        remedy="use a .json file" if write else "use a file that `esrjax parity -o` wrote",
    )


def check_writable(path: Path, checkpoint: Path | None) -> None:
    """Check that a report can be written to `path`, before the comparison takes its time.

    Args:
        path: Where the report is to be written.
        checkpoint: The checkpoint that is compared, if any.

    Raises:
        UnreadableFile: If `path` is neither a .json nor the checkpoint itself, as .safetensors
            with esrjax metadata.
    """
    if path.suffix == ".safetensors":
        if checkpoint is None or not path.is_file() or not path.samefile(checkpoint):
            raise _bad_report(path, "it is not the checkpoint that is compared", write=True)
        if checkpoint_io.read_checkpoint(path).metadata is None:
            raise _bad_report(path, "no metadata; `esrjax weights convert` writes it", write=True)
    elif path.suffix != ".json" or path.is_dir():
        raise _bad_report(path, "its suffix is not .json", write=True)


def write(path: Path, report: ParityReport) -> None:
    """Write a report to a .json, or into the metadata of the .safetensors that it is about.

    Args:
        path: The .json, or the checkpoint.
        report: The report.

    Raises:
        UnwritableFile: If the file cannot be written.
    """
    if path.suffix == ".safetensors":
        checkpoint = checkpoint_io.read_checkpoint(path)
        assert checkpoint.metadata is not None
        fields = _ADAPTER.dump_python(report, mode="json")
        new_metadata = replace(checkpoint.metadata, parity_report=fields)
        checkpoint_io.write_safetensors(path, checkpoint.state_dict, new_metadata)
    else:
        io.write_bytes(path, _ADAPTER.dump_json(report, indent=2) + b"\n")


# --- verification ---


@dataclass(frozen=True, kw_only=True)
class ReportVerification:
    """The result of running a report's request again.

    Attributes:
        report: The report.
        differences: Hashes and checks that are not as reported.
        notes: Versions that differ, as a possible reason.
    """

    report: ParityReport
    differences: Sequence[str]
    notes: Sequence[str]

    @property
    def passed(self) -> bool:
        """Whether hashes and checks are as reported, and the report says that they passed."""
        return not self.differences and self.report.passed

    def as_dict(self) -> dict[str, Any]:
        """Return the result in plain types, for JSON."""
        return {
            "method": self.report.request.method,
            "passed": self.passed,
            "reported_passed": self.report.passed,
            "differences": self.differences,
            "notes": self.notes,
        }


def verify(path: Path, optimizers: Sequence[OptimizerPair] = ()) -> ReportVerification:
    """Run the request of a report again and compare the results.

    If a file has changed, nothing is run: that includes the user's Python file, whose code was
    trusted only as it was.

    Args:
        path: A report, .json, or a .safetensors that contains one.
        optimizers: Optimizers of which steps are compared, as for `parity.run`.

    Raises:
        UnreadableFile: If the file contains no report.
        UserError: If the request cannot be run.
    """
    report = read(path)
    if report.format == 1:
        raise UnreadableFile(
            f"{path.name} has format 1, whose comparison was of one set of weights",
            rule="a report is verified by the comparison that wrote it",
            location=str(path),
            remedy="write a new one: `esrjax parity ... -o`",
        )
    request = _locate_files(report.request, path)
    hashes = parity.hash_inputs(request) | _hash_imports(report, request)
    comparable = {key: value for key, value in report.hashes.items() if key in hashes}
    differences = _differences("sha256 of ", comparable, hashes)
    if not differences:
        result = parity.run(request, optimizers)
        differences = _differences("sha256 of ", report.hashes, result.hashes)
        differences += _differences("", report.checks, result.comparison.checks)
    notes = _differences("version of ", report.versions, _versions())
    return ReportVerification(report=report, differences=differences, notes=notes)


def _locate_files(request: ParityRequest, path: Path) -> ParityRequest:
    """Return the request with files that no longer exist looked up in the report's folder."""

    def locate(file: str) -> str:
        sibling = path.parent / Path(file).name
        return str(sibling) if not Path(file).exists() and sibling.exists() else file

    checkpoint = str(path) if path.suffix == ".safetensors" else request.checkpoint
    file, colon, class_name = (request.torch or "").rpartition(":")
    return replace(
        request,
        checkpoint=checkpoint and locate(checkpoint),
        golden=request.golden and locate(request.golden),
        torch=request.torch and f"{locate(file)}{colon}{class_name}",
    )


def _hash_imports(report: ParityReport, request: ParityRequest) -> dict[str, str]:
    """Return the current hashes of the files that the PyTorch file imported."""
    if request.torch_file is None:
        return {}
    folder = request.torch_file.parent
    keys = [key for key in report.hashes if key.startswith(IMPORT_PREFIX)]
    return {key: parity.hash_file(folder / key.removeprefix(IMPORT_PREFIX)) for key in keys}


def _differences(label: str, reported: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    return [
        f"{label}{key}: {_format_value(reported.get(key))} in the report, "
        f"{_format_value(current.get(key))} now"
        for key in {**reported, **current}
        if reported.get(key) != current.get(key)
    ]


def _format_value(value: str | bool | None) -> str:
    if value is None:
        return "absent"
    if isinstance(value, bool):
        return "passed" if value else "failed"
    return f"{value[:12]}…" if len(value) == 64 else value
