"""Write the tables of docs/benchmarks.md: `make bench`, on an idle machine.

Every method in a process of its own: beside its PyTorch twin where tests/twins holds one, else
beside SPAN. `python tools/bench.py NAME... --side 32 --seconds 0.2` prints, and writes nothing.
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

from blocks import filled

from esrjax import registry
from esrjax.cli.tables import grid
from esrjax.cli.timings import ceilings_text, cells
from esrjax.method import Method

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
TWINS = ROOT / "tests" / "twins"
LARGE = ("hat", "mambairv2", "swinir")  # not of this contest: a section of their own
EXPORTED = ("span", "spanv2")  # also through ONNX Runtime, where it is installed
LOOPED = ("mambagate_sr",)  # the twin's loop over tokens: torch.compile would write out every turn
BASE = "span"
VERSIONS = ("jax", "jaxlib", "flax", "torch", "onnxruntime", "numpy")


def main(
    names: Sequence[str], side: int = 128, seconds: float = 3.0, *, compiled: bool = True
) -> str:
    """Both tables and what they were measured on, in Markdown."""
    load = os.getloadavg()
    methods = names or [name for name in registry.names() if _efficient(name)]
    twins = [name for name in methods if (TWINS / f"{name}.py").is_file()]
    alone = [name for name in methods if name not in twins]
    how: dict[str, Any] = {"side": side, "seconds": seconds}
    beside = _all([_bench(*_words(name, compiled), **how) for name in twins])
    loose = _all([_bench(name, BASE, **how) for name in alone])
    missing = {*methods} - {outcome["rows"][0]["method"] for outcome in (*beside, *loose)}
    failed = [f"Could not be run: {', '.join(sorted(missing))}."] if missing else []
    return "\n\n".join([_where([*beside, *loose], load), *_twins(beside), *_paces(loose), *failed])


def _all(outcomes: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
    return [outcome for outcome in outcomes if outcome]


def _efficient(name: str) -> bool:
    return isinstance(registry.method(name), Method) and name not in LARGE


def _words(name: str, compiled: bool) -> list[str]:
    follows = compiled and name not in LOOPED
    words = [name, "--peer", f"{TWINS / name}.py:Twin", *["--compiled"] * follows]
    return [*words, "--engine", "both"] if name in EXPORTED and find_spec("onnxruntime") else words


def _bench(*words: str, side: int, seconds: float) -> dict[str, Any] | None:
    """What `esrjax bench` says; of a mistake nothing, so that the others are not lost."""
    print("bench", *words, file=sys.stderr, flush=True)
    asked = ["--sizes", f"{side}x{side}", "--seconds", str(seconds), "--json"]
    command = [sys.executable, "-m", "esrjax", "bench", *words, *asked]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return None if done.returncode else json.loads(done.stdout)


def _where(outcomes: Sequence[dict[str, Any]], load: tuple[float, float, float]) -> str:
    """Device, versions, and how busy the machine was before anything ran."""
    if not outcomes:
        sys.exit("bench: nothing could be run")
    machine = outcomes[0]["machine"]
    versions = ", ".join(f"{name} {v}" for name in VERSIONS if (v := _version(name)))
    ceilings = [outcome["ceilings"]["float32"] for outcome in outcomes]
    best = {key: max(each[key] for each in ceilings) for key in ("bytes_per_s", "macs_per_s")}
    return (
        f"{machine['device']}; Python {machine['python']}, {versions}; float32. "
        f"Load before the first run: {' '.join(f'{each:.2f}' for each in load)}. "
        f"The machine {ceilings_text(best)}."
    )


def _version(name: str) -> str | None:
    return metadata.version(name) if find_spec(name) else None


def _twins(outcomes: Sequence[dict[str, Any]]) -> list[str]:
    rows = [row for outcome in outcomes for row in outcome["rows"]]
    notes = dict.fromkeys(note for outcome in outcomes for note in outcome["notes"])
    title = "Beside the same network in PyTorch, each method in turn with it:"
    return [grid(cells(rows), title), *notes] if rows else []


def _paces(outcomes: Sequence[dict[str, Any]]) -> list[str]:
    """How many multiply-adds a second, beside those of the baseline in the same rounds."""
    head = ["method", "size", "median, ms", "95 % interval", "GMAC/s", "SPAN's in turn"]
    lines = [_pace(*outcome["rows"]) for outcome in outcomes]
    title = "Multiply-adds a second, beside SPAN's in the same rounds:"
    return [grid([[*head, "MACs a byte", "of roofline"], *lines], title)] if lines else []


def _pace(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    shown = dict(zip(*cells([row]), strict=True))
    keys = ("method", "size", "median, ms", "95 % interval")
    pace, beside = (f"{each['macs'] / each['median_ms'] / 1e6:.1f}" for each in (row, base))
    intensity = f"{row['macs'] / row['bytes']:.1f}"
    return [*(shown[key] for key in keys), pace, beside, intensity, shown["of roofline"]]


def write(text: str) -> None:
    """Between the markers of the page."""
    PAGE.write_text(filled(PAGE.read_text(), "bench", text))


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="methods; by default all, which writes the page")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    given = parser.parse_args()
    tables = main(given.names, given.side, given.seconds, compiled=not given.no_compile)
    print(tables) if given.names else write(tables)
