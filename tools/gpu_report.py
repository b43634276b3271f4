"""Tables of the results of tools/gpu_run.py: `python tools/gpu_report.py OUT [--write]`.

Prints Markdown. --write puts it into the block `gpu` of docs/benchmarks.md, and the speed-up of
every kernel into kernels/devices.toml; results of a rehearsal are never written.
"""

import argparse
import json
import re
import statistics
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from blocks import replace_block
from gpu_results import Record
from gpu_run import XLA_VARIANTS
from tune import TABLE, write

from esrjax.cli.output import markdown_table

PAGE = Path(__file__).parents[1] / "docs/benchmarks.md"


def main() -> None:
    """Print the tables, and write them if told so."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    steps = read_steps(args.out)
    if not steps:
        sys.exit(f"{args.out} has no results: run tools/gpu_run.py {args.out} first")
    text = report(steps, args.out)
    print(text)
    if args.write:
        if any(step.get("rehearsal", True) for step in steps.values()):
            sys.exit("these are results of a rehearsal, which are not written")
        PAGE.write_text(replace_block(PAGE.read_text(), "gpu", text))
        write_devices(steps)


def read_steps(out: Path) -> dict[str, Record]:
    """Return the results of every step, by name."""
    files = sorted(out.glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def report(steps: dict[str, Record], out: Path) -> str:
    """Return the report: how the steps ended, and a table for each that has records."""
    parts = [_machine_text(steps), _steps_table(steps)]
    for name, make_table in TABLES.items():
        if records := steps.get(name, {}).get("records"):
            parts.append(make_table(name, records))
    registers = read_registers(out / "kernels.log")
    return "\n\n".join([*parts, *([_registers_table(registers)] if registers else [])])


def _machine_text(steps: dict[str, Record]) -> str:
    records = steps.get("machine", {}).get("records") or [{}]
    machine, rehearsal = records[0], any(step.get("rehearsal") for step in steps.values())
    versions = ", ".join(f"{name} {machine.get(name)}" for name in ("jax", "torch", "triton"))
    warning = "**A rehearsal: these numbers mean nothing.** " * rehearsal
    return f"{warning}{machine.get('device')}, Python {machine.get('python')}, {versions}."


def _steps_table(steps: dict[str, Record]) -> str:
    rows = [
        [name, step.get("status", "interrupted"), f"{step.get('seconds', 0):.0f}",
         str(len(step["records"])), str(sum("error" in record for record in step["records"]))]
        for name, step in steps.items()
    ]  # fmt: skip
    return markdown_table([["step", "ended", "seconds", "records", "errors"], *rows], "Steps:")


def _table(title: str, columns: Sequence[str]) -> Callable[[str, list[Record]], str]:
    """Return a function that makes a table of these keys of the records, and of their errors."""

    def make(name: str, records: list[Record]) -> str:
        rows = [
            [*(_cell(record.get(column)) for column in columns), _problem(record)]
            for record in records
            if record.get("name") != "machine"  # in the first line of the report
        ]
        return markdown_table([[*columns, "note"], *rows], title)

    return make


def _problem(record: Record) -> str:
    return str(record.get("error") or record.get("unsupported") or record.get("missing") or "")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "x".join(map(str, value))
    return "" if value is None else str(value)


def _comparison(
    title: str, keys: Sequence[str], variant: str
) -> Callable[[str, list[Record]], str]:
    """Return a function that puts the times of the values of `variant` side by side."""

    def make(name: str, records: list[Record]) -> str:
        variants = list(dict.fromkeys(record[variant] for record in records))
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        for record in records:
            row = rows.setdefault(tuple(_cell(record[key]) for key in keys), {})
            row[record[variant]] = _time_cell(record) or _problem(record)[:60]
        cells = [[*key, *(row.get(v, "") for v in variants)] for key, row in rows.items()]
        return markdown_table([[*keys, *(f"{v}, ms" for v in variants)], *cells], title)

    return make


def _time_cell(record: Record) -> str:
    """Return the time, and the memory of temporary arrays where it was recorded."""
    memory = record.get("temporary_mib")
    return _cell(record.get("ms")) + ("" if memory is None else f" ({memory:.4g} MiB)")


_TRAINING = ("batch", "precision", "ms", "patches_per_s", "peak_mib")
_ERRORS = ("name", "dims", "dtype", "semantics", "relative_error", "gradient_error")
_OPERANDS = ("name", "dims", "dtype")
TABLES: dict[str, Callable[[str, list[Record]], str]] = {
    "machine": _table("Ceilings:", ("name", "dtype", "precision", "tb_per_s", "tflop_per_s")),
    "kernels": _table("Kernels, error against the reference at the highest precision:", _ERRORS),
    "kernels-warpgroup": _table("The same with the semantics of warpgroups:", _ERRORS),
    "kernel-times": _comparison("Kernels beside the reference:", _OPERANDS, "implementation"),
    "attention": _comparison("Attention of windows:", ("title", "dtype", "pass"), "engine"),
    "networks": _comparison("Networks:", ("name", "dtype"), "implementation"),
    "torch-networks": _comparison("Networks in PyTorch:", ("name", "dtype"), "mode"),
    "training": _table("Training steps:", ("name", *_TRAINING)),
    "torch-training": _table("Training steps in PyTorch:", ("name", "mode", *_TRAINING)),
    **{
        f"networks-{variant}": _comparison(f"SPANV2, XLA: {variant}:", ("name", "dtype"), "gate")
        for variant in XLA_VARIANTS
    },
    "profile": _table("Profilers:", ("name",)),
}


# --- registers, devices.toml ---


def read_registers(log: Path) -> list[list[str]]:
    """Return kernel, registers and spilled bytes as ptxas reports them in a log."""
    rows, title = [], ""
    for line in log.read_text(errors="replace").splitlines() if log.is_file() else []:
        if line.startswith("== "):
            title, spills = line.removeprefix("== "), "0"
        if match := re.search(r"(\d+) bytes spill stores", line):
            spills = match[1]
        if match := re.search(r"Used (\d+) registers", line):
            rows.append([title, match[1], spills])
    return rows


def _registers_table(rows: list[list[str]]) -> str:
    return markdown_table(
        [["kernel", "registers", "spilled bytes"], *rows], "Registers of a thread:"
    )


def write_devices(steps: dict[str, Record]) -> None:
    """Write the speed-up of every kernel in float32, with its first configuration."""
    table, device = tomllib.loads(TABLE.read_text()), steps["machine"]["records"][0]["device"]
    for name, value in speedups(steps["kernel-times"]["records"]).items():
        space = import_module(f"esrjax_kernels.{name}").CONFIG_SPACE
        config = {key: choices[0] for key, choices in space.items()}
        table.setdefault(name, {}).setdefault(device, {**config, "speedup": value})
    write(table)


def speedups(records: list[Record]) -> dict[str, float]:
    """Return the reference's time over the kernel's in float32, geometric mean over the sizes."""
    times: dict[tuple[str, str], dict[str, float]] = {}
    for record in records:
        if record["dtype"] == "float32" and "ms" in record:
            key = record["name"], str(record["dims"])
            times.setdefault(key, {})[record["implementation"]] = record["ms"]
    ratios: dict[str, list[float]] = {}
    for (name, _), pair in times.items():
        if len(pair) == 2:
            ratios.setdefault(name, []).append(pair["reference"] / pair["kernel"])
    return {name: round(statistics.geometric_mean(values), 3) for name, values in ratios.items()}


if __name__ == "__main__":
    main()
