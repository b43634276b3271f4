"""Generator of the table of docs/benchmarks.md: `make bench`, on an idle machine.

Every method runs in its own process, in JAX, OpenVINO and ONNX Runtime, interleaved with its
PyTorch twin if tests/twins has one, else with SPAN. `python tools/bench.py NAME... --lr-sides 32
--seconds 0.2` prints the table and does not write the page.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from blocks import replace_block

from esrjax import registry
from esrjax.bench.timing import median_interval
from esrjax.cli.bench import peaks_text
from esrjax.cli.output import markdown_table
from esrjax.method import Method

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
TWINS = ROOT / "tests" / "twins"
TINY = {"channels": "36", "num_groups": "2", "depth": "2", "num_heads": "2"}
LARGE = ("hat", "mambairv2", "swinir")  # built with these hyperparameters
SMALLER = dict.fromkeys(LARGE, "32,64") | {"mambagate_sr": "64,128"}  # sides of LR images
# The first two loop over tokens in Python; what torch.compile (2.13) makes of HAT corrupts memory.
NOT_COMPILED = ("mambagate_sr", "mambairv2", "hat")
BASELINE = "span"
VERSIONS = ("jax", "jaxlib", "flax", "torch", "openvino", "onnxruntime", "numpy")
TORCH = {
    "pytorch": "eager",
    "pytorch-channels-last": "channels-last",
    "pytorch-compiled": "compiled",
}
ENGINES = {"openvino-cpu": "OpenVINO", "onnxruntime-cpu": "ONNX Runtime"}

TITLE = "Milliseconds of JAX, and the ratio of each engine's time to it in the same rounds:"

Row = dict[str, Any]  # of `esrjax bench --json`


def main(names: Sequence[str], sides: str, seconds: float, *, torch_compile: bool = True) -> str:
    """Return the table and a description of the machine, in Markdown."""
    load = os.getloadavg()
    methods = names or [n for n in registry.names() if isinstance(registry.get_entry(n), Method)]
    outputs = {name: _run_bench(name, sides, seconds, torch_compile) for name in methods}
    done = {name: output for name, output in outputs.items() if output}
    lines = [line for name, output in done.items() for line in _lines(name, output["rows"])]
    notes = [note for output in done.values() for note in output["notes"]]
    failed = (
        [f"Failed: {', '.join(outputs.keys() - done.keys())}."] if len(done) < len(outputs) else []
    )
    table = markdown_table([[*lines[0]], *([*line.values()] for line in lines)], TITLE)
    return "\n\n".join([_environment_text([*done.values()], load), table, *notes, *failed])


def _run_bench(name: str, sides: str, seconds: float, torch_compile: bool) -> dict[str, Any] | None:
    """Return the JSON output of `esrjax bench`, None on failure, so the others are not lost."""
    twin, args = TWINS / f"{name}.py", [name]
    if name in SMALLER:
        sides = SMALLER[name]
    for key, value in _tiny_hparams(name).items():
        args += ["--hparam", f"{key}={value}"]
    if twin.is_file():
        args += ["--torch", f"{twin}:Twin"]
        args += ["--torch-compile"] * (torch_compile and name not in NOT_COMPILED)
    elif name != BASELINE and name not in LARGE:
        args.append(BASELINE)
    sizes = ",".join(f"{side}x{side}" for side in sides.split(","))
    options = ["--image-size", sizes, "--seconds", str(seconds), "--engine", "all", "--json"]
    print("bench", *args, *options, file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "esrjax", "bench", *args, *options]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return None if process.returncode else json.loads(process.stdout)


def _lines(name: str, rows: Sequence[Row]) -> list[dict[str, str]]:
    """Return a line of the table for each image size."""
    lines: list[dict[str, str]] = []
    for size in dict.fromkeys(row["image_size"] for row in rows):
        of_size = [row for row in rows if row["image_size"] == size]
        by_engine = {row["engine"]: row for row in of_size if row["method"] == name}
        baseline = next((r for r in of_size if r["method"] != name and "jax" in r["engine"]), None)
        lines.append(_line(name, size, by_engine, baseline))
    return lines


def _line(name: str, size: str, rows: Mapping[str, Row], baseline: Row | None) -> dict[str, str]:
    jax = next(row for engine, row in rows.items() if engine.startswith("jax"))
    auto = rows.get("openvino-cpu", jax) if _is_convolutional(name) else jax
    peers = [row for engine, row in rows.items() if engine in (*TORCH, "onnxruntime-cpu")]
    has_twin = "pytorch" in rows
    line = {"method": name, "image": size, "JAX, ms": f"{jax['median_ms']:.1f}"}
    line |= {title: _ratio(rows.get(engine), jax) for engine, title in (ENGINES | TORCH).items()}
    line["auto"] = "JAX" if auto is jax else "OpenVINO"
    fastest = min(peers, key=lambda row: row["median_ms"], default=None)
    line["auto / fastest peer"] = _ratio(auto, fastest) if fastest and has_twin else "-"
    line["GMAC/s"] = "-" if jax["macs"] is None else f"{jax['macs'] / jax['median_ms'] / 1e6:.0f}"
    line["SPAN's"] = f"{baseline['macs'] / baseline['median_ms'] / 1e6:.0f}" if baseline else "-"
    return line


def _is_convolutional(name: str) -> bool:
    from esrjax.interop.export import is_convolutional
    from esrjax.nn.reparam import deploy

    method = registry.get_method(name)
    hparams = _tiny_hparams(name)
    net = deploy(method.build(**{key: int(value) for key, value in hparams.items()}))
    net.eval()
    return is_convolutional(net, method.min_side)


def _tiny_hparams(name: str) -> dict[str, str]:
    return TINY if name in LARGE else {}


def _ratio(row: Row | None, base: Row) -> str:
    """`0.812 ±0.004`: the median of the ratios in each round, and half its 95 % interval."""
    if row is None or row is base:
        return "-"
    ratios = [a / b for a, b in zip(row["samples_ms"], base["samples_ms"], strict=False)]
    low, high = median_interval(ratios)
    return f"{np.median(ratios):.2f} ±{(high - low) / 2:.2f}"


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


def write(table: str) -> None:
    """Write the table between the markers of the page."""
    PAGE.write_text(replace_block(PAGE.read_text(), "bench", table))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="methods; all by default, which writes the page")
    parser.add_argument("--lr-sides", default="128,256")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    args = parser.parse_args()
    text = main(args.names, args.lr_sides, args.seconds, torch_compile=not args.no_compile)
    print(text) if args.names else write(text)
