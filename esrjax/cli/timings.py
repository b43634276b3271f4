"""The output of `bench`: a table with one row for each method, image size and engine."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from esrjax.cli.tables import print_unwrapped

Row = Mapping[str, Any]  # of `esrjax.contest.bench.bench`
COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "method": lambda row: row["method"],
    "image size": lambda row: row["image_size"],
    "engine": lambda row: row["engine"],
    "implementation": lambda row: row["implementation"] or "-",
    "precision": lambda row: row["precision"],
    "median, ms": lambda row: f"{row['median_ms']:.3f}",
    "95 % interval": lambda row: f"[{row['low_ms']:.3f}, {row['high_ms']:.3f}]",
    "vs. eager PyTorch": lambda row: _ratio(row, "torch_eager_ratio"),
    "vs. torch.compile": lambda row: _ratio(row, "torch_compile_ratio"),
    "roofline": lambda row: _roofline(row),
    "compile time, s": lambda row: _number(row["compile_s"], ".2f"),
    "compilations": lambda row: str(row["compilations"]),
    "memory, MiB": lambda row: _number(row["peak_mib"], ".1f"),
}
LEFT_ALIGNED = ("method", "image size", "engine", "implementation", "precision")
# Columns that are shown only where the rows of JAX have different values.
VARIANTS = ("implementation", "precision")
# Columns that are shown only where a row has a value, with its key.
RATIOS = {
    "vs. eager PyTorch": "torch_eager_ratio",
    "vs. torch.compile": "torch_compile_ratio",
}


def show_bench(report: Mapping[str, Any]) -> None:
    """Print the device, its measured peaks, the rows, and the notes on what was skipped."""
    print_unwrapped(f"device: {report['device']}")
    for precision, peak in report["peaks"].items():
        print_unwrapped(f"{precision}: {peaks_text(peak)}")
    head, *lines = table_cells(report["rows"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in head:
        table.add_column(column, justify="left" if column in LEFT_ALIGNED else "right")
    for line in lines:
        table.add_row(*map(escape, line))
    print_unwrapped(table)
    for note in report["notes"]:
        print_unwrapped(note)


def peaks_text(peak: Mapping[str, Any]) -> str:
    """`memory bandwidth 11.2 GB/s, matmul 45.1 GMAC/s`."""
    bandwidth, matmul = peak["bytes_per_s"] / 1e9, peak["macs_per_s"] / 1e9
    return f"memory bandwidth {bandwidth:.1f} GB/s, matmul {matmul:.1f} GMAC/s"


def table_cells(rows: Sequence[Row]) -> list[list[str]]:
    """Return the header and the cells of each row, without columns that have no information."""
    columns = {title: text for title, text in COLUMNS.items() if _is_informative(title, rows)}
    return [list(columns), *([text(row) for text in columns.values()] for row in rows)]


def _is_informative(column: str, rows: Sequence[Row]) -> bool:
    if column in VARIANTS:
        return len({row[column] for row in rows} - {None}) > 1
    return column not in RATIOS or any(row[RATIOS[column]] is not None for row in rows)


def _ratio(row: Row, key: str) -> str:
    if row[key] is None:
        return "-"
    return f"{row[key]:.3f} [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]"


def _roofline(row: Row) -> str:
    """`22.4% (compute-bound)`: the fraction of the roofline that is reached."""
    return "-" if row["bound"] is None else f"{row['roofline_fraction']:.1%} ({row['bound']}-bound)"


def _number(value: float | None, format: str) -> str:
    return "-" if value is None else f"{value:{format}}"
