"""Generator of the tables of docs/benchmarks.md: `make bench`, on an idle machine.

Every method runs in its own process, interleaved with its PyTorch twin if tests/twins has one, else
with SPAN. `python tools/bench.py NAME... --lr-side 32 --seconds 0.2` prints the tables and does not
write the page.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from blocks import replace_block

from esrjax import registry
from esrjax.cli.bench import peaks_text, table_cells
from esrjax.cli.output import markdown_table
from esrjax.method import Method

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
TWINS = ROOT / "tests" / "twins"
OTHER_CHALLENGES = ("hat", "mambairv2", "swinir")  # have a section of their own
ALSO_ONNX = ("span", "spanv2")  # also run in ONNX Runtime, if installed
NOT_COMPILED = ("mambagate_sr", "mambairv2")  # torch.compile would unroll a loop over tokens
BASELINE = "span"
VERSIONS = ("jax", "jaxlib", "flax", "torch", "onnxruntime", "numpy")
COPIED = ("method", "image size", "median, ms", "95 % interval")  # columns of `esrjax bench`
ROOFLINE = "roofline"


def main(
    names: Sequence[str], lr_side: int = 128, seconds: float = 3.0, *, torch_compile: bool = True
) -> str:
    """Return both tables and a description of the machine, in Markdown."""
    load = os.getloadavg()
    methods = names or [name for name in registry.names() if _is_efficient(name)]
    with_twin = [name for name in methods if (TWINS / f"{name}.py").is_file()]
    without_twin = [name for name in methods if name not in with_twin]
    options: dict[str, Any] = {"lr_side": lr_side, "seconds": seconds}
    torch_outputs = _successful(
        [_run_bench(*_arguments(name, torch_compile), **options) for name in with_twin]
    )
    baseline_outputs = _successful([_run_bench(name, BASELINE, **options) for name in without_twin])
    outputs = [*torch_outputs, *baseline_outputs]
    missing = {*methods} - {output["rows"][0]["method"] for output in outputs}
    tables = [
        _environment_text(outputs, load),
        *_torch_table(torch_outputs),
        *_baseline_table(baseline_outputs),
    ]
    failed = [f"Failed: {', '.join(sorted(missing))}."] if missing else []
    return "\n\n".join([*tables, *failed])


def _successful(outputs: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    return [output for output in outputs if output]


def _is_efficient(name: str) -> bool:
    return isinstance(registry.get_entry(name), Method) and name not in OTHER_CHALLENGES


def _arguments(name: str, torch_compile: bool) -> list[str]:
    compiles = torch_compile and name not in NOT_COMPILED
    args = [name, "--torch", f"{TWINS / name}.py:Twin", *["--torch-compile"] * compiles]
    return [*args, "--engine", "both"] if name in ALSO_ONNX and find_spec("onnxruntime") else args


def _run_bench(*args: str, lr_side: int, seconds: float) -> dict[str, Any] | None:
    """Return the JSON output of `esrjax bench`, None on failure, so the others are not lost."""
    print("bench", *args, file=sys.stderr, flush=True)
    options = ["--image-size", f"{lr_side}x{lr_side}", "--seconds", str(seconds), "--json"]
    command = [sys.executable, "-m", "esrjax", "bench", *args, *options]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return None if process.returncode else json.loads(process.stdout)


def _environment_text(outputs: Sequence[dict[str, Any]], load: tuple[float, float, float]) -> str:
    """Return device, versions, and the load of the machine before the first run."""
    if not outputs:
        sys.exit("bench: every run failed")
    machine = outputs[0]["machine"]
    versions = ", ".join(f"{name} {v}" for name in VERSIONS if (v := _version(name)))
    all_peaks = [output["peaks"]["float32"] for output in outputs]
    peaks = {key: max(values[key] for values in all_peaks) for key in ("bytes_per_s", "macs_per_s")}
    return (
        f"{machine['device']}; Python {machine['python']}, {versions}; float32. "
        f"Load before the first run: {' '.join(f'{value:.2f}' for value in load)}. "
        f"Measured peaks: {peaks_text(peaks)}."
    )


def _version(name: str) -> str | None:
    return metadata.version(name) if find_spec(name) else None


def _torch_table(outputs: Sequence[dict[str, Any]]) -> list[str]:
    rows = [row for output in outputs for row in output["rows"]]
    notes = dict.fromkeys(note for output in outputs for note in output["notes"])
    title = "Compared with the same network in PyTorch, interleaved with it:"
    return [markdown_table(table_cells(rows), title), *notes] if rows else []


def _baseline_table(outputs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the multiply-adds per second, and the baseline's in the same rounds."""
    columns = [*COPIED, "GMAC/s", "SPAN, interleaved", "MACs per byte", ROOFLINE]
    rows = [_baseline_row(*output["rows"]) for output in outputs]
    title = "Multiply-adds per second, and SPAN's in the same rounds:"
    return [markdown_table([columns, *rows], title)] if rows else []


def _baseline_row(row: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    row_cells = dict(zip(*table_cells([row]), strict=True))
    speeds = [f"{timing['macs'] / timing['median_ms'] / 1e6:.1f}" for timing in (row, baseline)]
    intensity = f"{row['macs'] / row['bytes']:.1f}"
    return [*(row_cells[column] for column in COPIED), *speeds, intensity, row_cells[ROOFLINE]]


def write(tables: str) -> None:
    """Write the tables between the markers of the page."""
    PAGE.write_text(replace_block(PAGE.read_text(), "bench", tables))


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="methods; all by default, which writes the page")
    parser.add_argument("--lr-side", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    args = parser.parse_args()
    tables = main(args.names, args.lr_side, args.seconds, torch_compile=not args.no_compile)
    print(tables) if args.names else write(tables)
