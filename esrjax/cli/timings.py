"""What `bench` prints: one line for each method, size and way of running it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from esrjax.cli.tables import say

Row = Mapping[str, Any]
COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "method": lambda row: row["method"],
    "size": lambda row: row["size"],
    "engine": lambda row: row["engine"],
    "body": lambda row: row["body"] or "-",
    "precision": lambda row: row["precision"],
    "median, ms": lambda row: f"{row['median_ms']:.3f}",
    "95 % interval": lambda row: f"[{row['low_ms']:.3f}, {row['high_ms']:.3f}]",
    "of eager PyTorch": lambda row: _ratio(row, "of eager PyTorch"),
    "of torch.compile": lambda row: _ratio(row, "of torch.compile"),
    "of roofline": lambda row: _share(row),
    "compiled in, s": lambda row: _number(row["compile_s"], ".2f"),
    "compilations": lambda row: str(row["compilations"]),
    "memory, MiB": lambda row: _number(row["peak_mib"], ".1f"),
}
WORDS = ("method", "size", "engine", "body", "precision")  # to the left
SEVERAL = ("body", "precision")  # shown where the rows of JAX differ in it
RATIOS = {"of eager PyTorch": "ratio", "of torch.compile": "compiled_ratio"}  # where there are any


def show_bench(outcome: Mapping[str, Any]) -> None:
    """The device, what it does at most, the rows, and what was left out."""
    say(f"device: {outcome['device']}")
    for precision, ceilings in outcome["ceilings"].items():
        say(f"{precision}: {ceilings_text(ceilings)}")
    head, *lines = cells(outcome["rows"])
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in head:
        table.add_column(column, justify="left" if column in WORDS else "right")
    for line in lines:
        table.add_row(*map(escape, line))
    say(table)
    for note in outcome["notes"]:
        say(note)


def ceilings_text(ceilings: Mapping[str, Any]) -> str:
    """`copies 11.2 GB/s, multiplies 45.1 GMAC/s`."""
    copied, multiplied = ceilings["bytes_per_s"] / 1e9, ceilings["macs_per_s"] / 1e9
    return f"copies {copied:.1f} GB/s, multiplies {multiplied:.1f} GMAC/s"


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """A heading and a line for each row; columns that say nothing here are left out."""
    shown = {name: text for name, text in COLUMNS.items() if _says(name, rows)}
    return [list(shown), *([text(row) for text in shown.values()] for row in rows)]


def _says(column: str, rows: Sequence[Row]) -> bool:
    if column in SEVERAL:
        return len({row[column] for row in rows} - {None}) > 1
    return column not in RATIOS or any(row[RATIOS[column]] is not None for row in rows)


def _ratio(row: Row, column: str) -> str:
    name = RATIOS[column]
    if row[name] is None:
        return "-"
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _share(row: Row) -> str:
    return "-" if row["roofline"] is None else f"{row['roofline']:.1%} ({row['bound']})"


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)
