"""The figures that a report's table has, and the cell of each method under them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from esrjax.contest.rank import Line, Ranking
from esrjax.contest.rows import Row


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of every method. key: a field of `Row`, with `.SET` where that is a mapping."""

    key: str
    label: str
    unit: str
    decimals: int

    @property
    def field(self) -> str:
        """The field of `Row`."""
        return self.key.partition(".")[0]

    def value(self, row: Row) -> float | None:
        """The figure, or None where the row has none."""
        held = getattr(row, self.field)
        return held.get(self.key.partition(".")[2]) if "." in self.key else held

    def cell(self, line: Line, source: str) -> dict[str, Any]:
        """Its text and value, where it comes from, and whether it is under a floor."""
        value = self.value(line.row)
        return {
            "text": f"{value:.{self.decimals}f}",
            "value": value,
            "note": line.row.provenance.get(self.field, f"as {source} gives it"),
            "missed": self.key.removeprefix("psnr_") in line.missed,
        }


def columns(ranking: Ranking) -> list[Column]:
    """Those in which some method has a figure."""
    return [c for c in _every(ranking) if any(c.value(row) is not None for row in ranking.rows)]


def _every(ranking: Ranking) -> Iterator[Column]:
    decimals = ranking.rules.score.decimals
    elsewhere = {name for row in ranking.rows for name in row.psnr_elsewhere}
    harness = {name for row in ranking.rows for name in row.harness_ms}
    psnrs = {
        "psnr_valid": "PSNR valid",
        "psnr_test": "PSNR test",
        **{f"psnr_elsewhere.{name}": f"PSNR {name}" for name in sorted(elsewhere)},
    }
    runtimes = {
        "runtime_valid_ms": "Runtime valid",
        "runtime_test_ms": "Runtime test",
        **{f"harness_ms.{name}": f"Harness {name}" for name in sorted(harness)},
        "runtime_ms": "Runtime",
        "baseline_ms": "Baseline in turn",
    }
    for key, label in psnrs.items():
        yield Column(key=key, label=label, unit="dB", decimals=2)
    for key, label in runtimes.items():
        yield Column(key=key, label=label, unit="ms", decimals=decimals.runtime)
    yield Column(key="params_m", label="Params", unit="M", decimals=decimals.params)
    yield Column(key="flops_g", label="FLOPs", unit="G", decimals=decimals.flops)
