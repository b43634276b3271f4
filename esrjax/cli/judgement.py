"""The outcome of `submit build` and `submit check`: PSNR thresholds, data policy, state dict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esrjax.bridge.delivery import ExportedCheckpoint
from esrjax.contest.factsheet import threshold_text
from esrjax.contest.gates import ThresholdCheck

_NO_RECIPE = "unknown: there is no recipe of these weights"


@dataclass(frozen=True, kw_only=True)
class SubmissionReport:
    """Whether a challenge would accept a submission.

    Attributes:
        key: The submission's key in results.json, such as `22_spanv2`.
        threshold_checks: The PSNR on each split against the threshold of the challenge.
        trained_on: The training datasets; None where no recipe is known.
        policy_violations: A line for each training dataset that the rules forbid.
        files: Weights that the recipe takes from outside: initial weights and teachers.
        exported: The exported checkpoint, compared with the published one.
        output: The folder of the submission; None if nothing was written.
    """

    key: str
    threshold_checks: Sequence[ThresholdCheck]
    trained_on: Sequence[str] | None
    policy_violations: Sequence[str]
    files: Sequence[str]
    exported: ExportedCheckpoint
    output: Path | None = None

    @property
    def failures(self) -> list[str]:
        """The reasons for which the submission would be rejected."""
        failed = [f"PSNR on {c.split}" for c in self.threshold_checks if c.outcome == "fails"]
        failed += ["data policy"] * bool(self.policy_violations)
        return failed + ["state dict"] * bool(self.exported.mismatches)

    @property
    def undetermined(self) -> list[str]:
        """The checks that could not be made with the given datasets and recipe."""
        checks = [c for c in self.threshold_checks if c.outcome == "not checked"]
        splits = [f"PSNR on {check.split}" for check in checks]
        return splits + ["data policy"] * (self.trained_on is None)

    @property
    def data_policy(self) -> str:
        """The training datasets, with violations of the data policy, in one line."""
        if self.trained_on is None:
            return _NO_RECIPE
        datasets = f"trained on {', '.join(self.trained_on)}"
        violations = [f"not allowed: {line}" for line in self.policy_violations]
        files = [f"also uses {file}, whose training data is unknown" for file in self.files]
        return "; ".join([datasets, *violations, *files])

    def text(self) -> str:
        """Return one line for each check, and the result."""
        lines = [
            self.key,
            *(f"{c.split:<14} {c.psnr:.4f} dB, {threshold_text(c)}" for c in self.threshold_checks),
            f"training data  {self.data_policy}",
            f"state dict     {self.exported.summary}",
            f"result         {self._result()}",
        ]
        return "\n".join(lines + ([f"written        {self.output}"] if self.output else []))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON."""
        return {
            "key": self.key,
            "threshold_checks": [
                {
                    **vars(check),
                    "rounded_margin_mdb": check.rounded_margin_mdb,
                    "unrounded_margin_mdb": check.unrounded_margin_mdb,
                    "outcome": check.outcome,
                }
                for check in self.threshold_checks
            ],
            "trained_on": self.trained_on,
            "policy_violations": self.policy_violations,
            "files": self.files,
            "state_dict": vars(self.exported),
            "failures": self.failures,
            "undetermined": self.undetermined,
            "output": self.output and str(self.output),
        }

    def _result(self) -> str:
        result = f"rejected for {', '.join(self.failures)}" if self.failures else "no failures"
        return result + (
            f"; undetermined: {', '.join(self.undetermined)}" if self.undetermined else ""
        )
