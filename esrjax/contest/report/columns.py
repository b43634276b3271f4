"""Columns of the report's table, and the cell of each entry in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from esrjax.contest.rank import RankedEntry, Ranking
from esrjax.contest.rows import Row


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of every method.

    Attributes:
        key: Field of `Row`; `FIELD.DATASET` for a field that maps datasets to figures.
        label: Heading.
        unit: Unit of the figure.
        decimals: Decimals shown.
    """

    key: str
    label: str
    unit: str
    decimals: int

    @property
    def field(self) -> str:
        """The field of `Row`."""
        return self.key.partition(".")[0]

    def value(self, row: Row) -> float | None:
        """Return the figure of a row, or None if it has none."""
        value = getattr(row, self.field)
        return value.get(self.key.partition(".")[2]) if "." in self.key else value

    def cell(self, entry: RankedEntry, source: str) -> dict[str, Any]:
        """Return the cell of an entry that has this figure: text, value, provenance, threshold."""
        value = self.value(entry.row)
        return {
            "text": f"{value:.{self.decimals}f}",
            "value": value,
            "note": entry.row.provenance.get(self.field, f"from {source}"),
            "below_threshold": self.key.removeprefix("psnr_") in entry.below_threshold,
        }


def visible_columns(ranking: Ranking) -> list[Column]:
    """Return the columns in which at least one method has a figure."""
    return [
        c for c in _all_columns(ranking) if any(c.value(row) is not None for row in ranking.rows)
    ]


def _all_columns(ranking: Ranking) -> Iterator[Column]:
    decimals = ranking.rules.score.decimals
    other_datasets = {name for row in ranking.rows for name in row.psnr_other}
    protocol_datasets = {name for row in ranking.rows for name in row.protocol_ms}
    psnrs = {
        "psnr_valid": "PSNR valid",
        "psnr_test": "PSNR test",
        **{f"psnr_other.{name}": f"PSNR {name}" for name in sorted(other_datasets)},
    }
    runtimes = {
        "runtime_valid_ms": "Runtime valid",
        "runtime_test_ms": "Runtime test",
        **{f"protocol_ms.{name}": f"Protocol {name}" for name in sorted(protocol_datasets)},
        "runtime_ms": "Runtime",
        "baseline_ms": "Baseline interleaved",
    }
    for key, label in psnrs.items():
        yield Column(key=key, label=label, unit="dB", decimals=2)
    for key, label in runtimes.items():
        yield Column(key=key, label=label, unit="ms", decimals=decimals.runtime)
    yield Column(key="params_m", label="Params", unit="M", decimals=decimals.params)
    yield Column(key="flops_g", label="FLOPs", unit="G", decimals=decimals.flops)
