"""What a contest would say of a submission, in words and for a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esrjax.bridge.delivery import Delivery
from esrjax.contest.factsheet import gate_words
from esrjax.contest.gates import Gate

_UNKNOWN = "unknown: no recipe says what these weights were trained on"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a contest would say of a submission.

    trained_on: None where no recipe is known. files: weights that the recipe took from elsewhere.
    """

    key: str
    gates: Sequence[Gate]
    trained_on: Sequence[str] | None
    unfair: Sequence[str]
    files: Sequence[str]
    delivery: Delivery
    written: Path | None = None

    @property
    def failures(self) -> list[str]:
        """What it would be refused for."""
        missed = [f"PSNR on {gate.split}" for gate in self.gates if gate.verdict == "misses"]
        return missed + ["fairness"] * bool(self.unfair) + ["keys"] * bool(self.delivery.departures)

    @property
    def open(self) -> list[str]:
        """What cannot be said from what is at hand."""
        apart = [f"PSNR on {gate.split}" for gate in self.gates if gate.verdict == "not judged"]
        return apart + ["fairness"] * (self.trained_on is None)

    @property
    def fairness(self) -> str:
        """Which sets it was trained on, and what is wrong with them."""
        if self.trained_on is None:
            return _UNKNOWN
        further = [f"also made with {file}, whose training it does not say" for file in self.files]
        sets = f"trained on {', '.join(self.trained_on)}"
        return "; ".join([sets, *(f"not fair: {line}" for line in self.unfair), *further])

    def text(self) -> str:
        """A line for each question, and the verdict."""
        lines = [
            self.key,
            *(f"{g.split:<9} {g.psnr:.4f} dB, {gate_words(g)}" for g in self.gates),
            f"fairness  {self.fairness}",
            f"keys      {self.delivery.words}",
            f"verdict   {self._verdict()}",
        ]
        return "\n".join(lines + ([f"written   {self.written}"] if self.written else []))

    def as_dict(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "key": self.key,
            "gates": [
                {
                    **vars(gate),
                    "rounded_mdb": gate.rounded_mdb,
                    "unrounded_mdb": gate.unrounded_mdb,
                    "verdict": gate.verdict,
                }
                for gate in self.gates
            ],
            "trained_on": self.trained_on,
            "unfair": self.unfair,
            "files": self.files,
            "keys": vars(self.delivery),
            "failures": self.failures,
            "open": self.open,
            "written": self.written and str(self.written),
        }

    def _verdict(self) -> str:
        refused = f"refused for {', '.join(self.failures)}" if self.failures else "nothing fails"
        return refused + (f"; open: {', '.join(self.open)}" if self.open else "")
