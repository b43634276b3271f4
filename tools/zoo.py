"""Generator of the table of docs/zoo.md, PSNR with official and shipped weights: `make zoo`.

Official weights are those of the reference folder; methods whose weights are not public, or only of
a tiny network, are left out. `python tools/zoo.py NAME...` prints the rows and writes no page.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from blocks import replace_block

import esrjax
from esrjax import registry
from esrjax.cli.output import markdown_table
from esrjax.data import datasets
from esrjax.data.image_io import Pixels
from esrjax.data.resize import bicubic_upscale
from esrjax.errors import UserError
from esrjax.evaluation import metrics
from esrjax.evaluation.upscale import uint8_upscaler
from esrjax.io import sha256_file
from esrjax.method import Method

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
TINY = ("hat", "mambairv2", "swinir", "mambagate_sr")  # tiny or random weights in the folder
DATASETS, SPECS = ("Set5", "Set14", "B100"), ("ntire", "y")
TITLE = "PSNR in dB; RGB is `--spec ntire`, Y is `--spec y`:"


@dataclass(frozen=True)
class Entry:
    """A method with weights.

    Attributes:
        name: Name of the method.
        weights: "official", "shipped" or "-", of bicubic.
        model: None for bicubic.
    """

    name: str
    weights: str
    model: Any

    def row(self) -> list[str]:
        """Return the cells: name, weights, parameters, MACs, and PSNR by dataset and spec."""
        counts = method_counts().get(self.name)
        figures = [f"{counts['params']:,}", f"{counts['macs'] / 1e9:.2f} G"] if counts else "--"
        return [self.name, self.weights, *figures, *self._psnr()]

    def _psnr(self) -> Iterator[str]:
        upscale = uint8_upscaler(self.model.upscaler()) if self.model else bicubic
        specs = [metrics.get_spec(name) for name in SPECS]
        for dataset in DATASETS:
            images = [pair.read() for pair in datasets.list_pairs(dataset, 4)]
            outputs = [(upscale(image.lr), image.hr) for image in images]
            for spec in specs:
                yield f"{fmean(metrics.psnr(sr, hr, spec) for sr, hr in outputs):.2f}"


def bicubic(lr: Pixels) -> Pixels:
    """Return MATLAB's bicubic x4."""
    return bicubic_upscale(lr, 4)


@functools.cache
def method_counts() -> dict[str, dict[str, Any]]:
    """Return the rows of `esrjax method list`, by name."""
    command = [sys.executable, "-m", "esrjax", "method", "list", "--json"]
    rows = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {row["name"]: row for row in rows}


def entries() -> Iterator[Entry]:
    """Yield bicubic and all methods with their official and shipped weights."""
    folder = Path(os.environ["ESRJAX_REFERENCE"]) / "weights"
    files = {sha256_file(path): path for path in sorted(folder.iterdir())}
    yield Entry("bicubic", "-", None)
    for name, method in registry.iter_entries():
        if not isinstance(method, Method):
            continue
        official = (files.get(weights.sha256) for weights in method.weights.values())
        if (file := next(filter(None, official), None)) and name not in TINY:
            yield Entry(name, "official", _open(name, file))
        if method.pretrained:
            yield Entry(name, "shipped", _open(name, None))


def _open(name: str, file: Path | None) -> Any:
    """Return the network in OpenVINO, which compiles no program for each size, else in JAX."""
    try:
        return esrjax.load(name, file, engine="openvino")
    except UserError:  # OpenVINO has not all of its operators
        return esrjax.load(name, file)


def main(names: list[str]) -> None:
    """Print the rows, and write the page if no names are given."""
    columns = [f"{dataset} {spec}" for dataset in DATASETS for spec in ("RGB", "Y")]
    rows = [["method", "weights", "parameters", "MACs", *columns]]
    for entry in entries():
        if not names or entry.name in names:
            rows.append(entry.row())
            print(*rows[-1], flush=True)
    if not names:
        PAGE.write_text(replace_block(PAGE.read_text(), "zoo", markdown_table(rows, TITLE)))


if __name__ == "__main__":
    main(sys.argv[1:])
