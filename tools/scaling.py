"""Growth of cost with work: CPU time over rows, pixels, patches and plugins.

`python tools/scaling.py` writes the table of docs/benchmarks.md ("Growth"), and `make bench` calls
it. A cost that grows in proportion to the work has the exponent 1, a quadratic one 2.
"""

import contextlib
import gc
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
from blocks import replace_block

import esrjax
from esrjax import registry
from esrjax.challenge import results, rules, sensitivity, table
from esrjax.challenge.rank import rank
from esrjax.challenge.report import content
from esrjax.cli.methods import list_methods
from esrjax.cli.output import markdown_table
from esrjax.data.image_io import write_image
from esrjax.evaluation import upscale
from esrjax.runtime import reexec_with_huge_pages
from esrjax.training import loader
from esrjax.training.recipe import Data

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
RULES = rules.load_rules("ntire2026")
Work = Callable[[], object]

# --- the work ------------------------------------------------------------------------------------


def rank_rows(num_rows: int, folder: Path) -> Work:
    """Return the work of `esrjax rank results.json`: read, rank, write the table."""
    random, file = Random(0), folder / f"{num_rows}.json"
    baseline = {"team": RULES.baseline.team, **_entry(20.0, 0.2, 20.0)}
    document = {"00_baseline": baseline}
    for k in range(num_rows - 1):  # few values, so that entries tie
        figures = random.randint(5, 80) / 2, random.randint(1, 50) / 50, random.randint(5, 50)
        document[f"{k}_net{k}"] = {"team": f"Team {k}", **_entry(*figures)}
    file.write_text(json.dumps(document))
    return lambda: table.markdown(rank(results.read_rows(file, RULES), RULES))


def _entry(runtime_ms: float, params_m: float, flops_g: float) -> dict[str, object]:
    means = {"valid_ave_psnr": 27.0, "test_ave_psnr": 27.0}
    runtimes = {f"{split}_runtime": [runtime_ms - 1, runtime_ms + 1] for split in ("valid", "test")}
    means |= {"valid_ave_runtime": runtime_ms, "test_ave_runtime": runtime_ms}
    return {**means, **runtimes, "num_parameters": params_m, "flops": flops_g}


def analyse_rows(num_rows: int, folder: Path) -> Work:
    """Return the work of `rank --sensitivity` and of the data of `report`, beyond the ranking."""
    rank_rows(num_rows, folder)
    ranking = rank(results.read_rows(folder / f"{num_rows}.json", RULES), RULES)

    def work() -> None:
        sensitivity.all_scenarios(ranking)
        sensitivity.compute_margins(ranking)
        sensitivity.rank_stability(ranking)
        content.build_content(ranking, "results.json")

    return work


def upscale_pixels(num_pixels: int, folder: Path) -> Work:
    """Return the work of upscaling a square image in tiles of 64x64 by SPANV2."""
    side = round(math.sqrt(num_pixels))
    lr = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
    upscaler = upscale.uint8_upscaler(esrjax.load("spanv2").upscaler((64, 64)))
    return lambda: upscaler(lr)


def draw_patches(num_patches: int, folder: Path) -> Work:
    """Return the work of drawing patches in batches of 16 from eight images in memory."""
    random = np.random.default_rng(0)
    for k in range(8):
        write_image(folder / f"{k}.png", random.integers(256, size=(96, 96, 3), dtype=np.uint8))
    data = Data(datasets=(str(folder),), hr_patch_sizes=((64, 64),), batch_size=16)
    batches = loader.open_batches(data, 4, seed=1)
    return lambda: sum(len(batch["lr"]) for batch in batches.iter_from(0, num_patches // 16))


def list_plugins(num_plugins: int, folder: Path) -> Work:
    """Return the work of `esrjax method list` of plugins whose rows are in the cache."""
    module, names = f"plugins_{num_plugins}", [f"net{k}" for k in range(num_plugins)]
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    figures = "dict(params=1, macs=2)"
    (folder / f"{module}.py").write_text(
        "from esrjax.method import Method\n"
        f"M = Method(network=dict, team='T', paper='', license='', reported={figures})\n"
    )
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = [f"{name} = {module}:M" for name in names]
    (info / "entry_points.txt").write_text("\n".join([f"[{registry.METHOD_GROUP}]", *lines]))
    env = {"XDG_CACHE_HOME": str(folder / "cache"), registry.PLUGINS_ENV: ",".join(names)}

    def work() -> None:
        registry._scan.cache_clear()
        with (
            mock.patch.object(sys, "path", [str(folder), *sys.path]),
            mock.patch.dict(os.environ, env),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            list_methods()

    with mock.patch("os.fsync"):  # the time of the disk
        work()
    return work


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Work of several sizes.

    Attributes:
        prepare: Returns the work of a size, given a folder of its own.
        unit: What the size counts.
        sizes: The sizes that are measured; the cost of the first is taken as fixed.
    """

    prepare: Callable[[int, Path], Work]
    unit: str
    sizes: Sequence[int]


WORKLOADS: Mapping[str, Workload] = {
    "rank": Workload(prepare=rank_rows, unit="rows", sizes=(10, 1000, 2000, 4000, 8000, 16000)),
    "rank --sensitivity, report": Workload(
        prepare=analyse_rows, unit="rows", sizes=(10, 250, 500, 1000, 2000, 4000)
    ),
    "upscale": Workload(
        prepare=upscale_pixels,
        unit="pixels",
        sizes=(64**2, *((128 * k) ** 2 for k in (2, 3, 4, 6, 8))),
    ),
    "loader": Workload(
        prepare=draw_patches, unit="patches", sizes=(16, 4000, 8000, 16000, 32000, 64000)
    ),
    "method list": Workload(
        prepare=list_plugins, unit="plugins", sizes=(1, 50, 100, 200, 400, 800)
    ),
}

# --- the measurement -----------------------------------------------------------------------------


def prepare_all(
    prepare: Callable[[int, Path], Work], sizes: Sequence[int], folder: Path
) -> list[Work]:
    """Return the work of each size; each has been done once, so that nothing is left to compile."""
    works: list[Work] = []
    for size in sizes:
        place = folder / str(size)
        place.mkdir()
        works.append(prepare(size, place))
        works[-1]()
    return works


def min_cpu_seconds(works: Sequence[Work], rounds: int) -> list[float]:
    """Return the least CPU time of each work, summed over the threads, of interleaved rounds.

    As in `timeit`, without the garbage collector: it looks at all objects of the process whenever
    their number has grown by a quarter, so that its cost jumps.
    """
    rounds_s: list[list[float]] = []
    for _ in range(rounds):
        gc.collect()
        gc.disable()
        try:
            rounds_s.append([*map(_cpu_seconds, works)])
        finally:
            gc.enable()
    return [min(seconds) for seconds in zip(*rounds_s, strict=True)]


def _cpu_seconds(work: Work) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def growth_exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Return the slope of log(cost) over log(size), without the fixed part of the cost.

    Args:
        sizes: The first is small: the cost of the others beyond its own grows with the size.
        costs: Of each size.
    """
    fixed, *others = costs
    growing = [max(cost - fixed, 1e-9) for cost in others]
    beyond = [size - sizes[0] for size in sizes[1:]]
    return float(np.polyfit(np.log(beyond), np.log(growing), 1)[0])


def main(rounds: int = 3) -> str:
    """Return the table of all workloads, in Markdown."""
    cells = [["work", "size", "CPU time, s", "per unit, µs", "exponent"]]
    for title, workload in WORKLOADS.items():
        print("scaling", title, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            works = prepare_all(workload.prepare, workload.sizes, Path(folder))
            costs = min_cpu_seconds(works, rounds)
        sizes = f"{workload.sizes[1]:,} to {workload.sizes[-1]:,} {workload.unit}"
        seconds = f"{costs[1]:.3g} to {costs[-1]:.3g}"
        per_unit = [
            f"{1e6 * (cost - costs[0]) / (size - workload.sizes[0]):.3g}"
            for cost, size in zip(costs[1::4], workload.sizes[1::4], strict=True)
        ]
        exponent = f"{growth_exponent(workload.sizes, costs):.2f}"
        cells.append([title, sizes, seconds, " to ".join(per_unit), exponent])
    return markdown_table(cells, "Least CPU time of three rounds, summed over the threads:")


if __name__ == "__main__":
    reexec_with_huge_pages()  # as the command does
    PAGE.write_text(replace_block(PAGE.read_text(), "growth", main()))
