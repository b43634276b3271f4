"""Cost grows in proportion to the work: no rank, upscale, loader or list is quadratic.

Two measures of each work at several sizes, without the fixed part of the cost (tools/scaling.py):

- The number of lines of Python that run, each item of a comprehension among them. It is the same in
  every run and on every machine, so that its limit is narrow.
- CPU time, which also sees loops within one call, of NumPy for example. Caches make large works
  slower per unit, so that its limit is wide. Another program can only add to it: the least of
  several rounds counts, and while that is above the limit further rounds are added. A busy machine
  makes the test slower, not red, and a quadratic cost stays quadratic in every round.

Sizes are small. What is quadratic with a small factor shows in the table that `make bench` writes.
"""

import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from esrjax.evaluation.upscale import make_tiling, tiled_upscaler

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import scaling

LINES_LIMIT, CPU_LIMIT, MAX_ROUNDS = 1.1, 1.35, 8


def tile_pixels(num_pixels: int, folder: Path) -> scaling.Work:
    """Upscaling of a square image in tiles of 64x64, by a network that repeats pixels."""
    lr = np.zeros((round(num_pixels**0.5),) * 2 + (3,), np.uint8)
    tiling = make_tiling(lr, (64, 64), 8)
    upscaler = tiled_upscaler(lambda x, mask: x.repeat(4, 1).repeat(4, 2), tiling, 1.0, 4)
    return lambda: upscaler(lr)


WORKLOADS = {
    "rank": (scaling.rank_rows, (10, 100, 300, 900)),
    "sensitivity and report": (scaling.analyse_rows, (10, 50, 120, 300)),
    "upscale": (tile_pixels, (64**2, 160**2, 256**2, 384**2)),
    "loader": (scaling.draw_patches, (16, 800, 1600, 3200)),
    "method list": (scaling.list_plugins, (1, 10, 30, 80)),
}


def count_lines(work: scaling.Work) -> int:
    """Return the number of lines, calls and returns of Python in this thread."""
    num_lines = 0

    def trace(frame: object, event: str, argument: object) -> object:
        nonlocal num_lines
        num_lines += 1
        return trace

    before = sys.gettrace()  # of a debugger
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return num_lines


def cpu_exponent(sizes, works) -> float:
    """The exponent of the least CPU times, of as many rounds as it takes to be within the limit."""
    exponent, costs = np.inf, [np.inf] * len(works)
    for _ in range(MAX_ROUNDS):
        costs = np.minimum(costs, scaling.min_cpu_seconds(works, 1))
        exponent = scaling.growth_exponent(sizes, costs)
        if exponent <= CPU_LIMIT:
            break
    return exponent


@pytest.mark.parametrize("name", WORKLOADS)
def test_cost_grows_in_proportion_to_the_work(name, tmp_path):
    prepare, sizes = WORKLOADS[name]
    works = scaling.prepare_all(prepare, sizes, tmp_path)
    lines = [count_lines(work) for work in works]
    assert scaling.growth_exponent(sizes, lines) <= LINES_LIMIT, lines
    assert cpu_exponent(sizes, works) <= CPU_LIMIT


def test_exponent_is_that_of_the_growth():
    sizes = (10, 100, 200, 400)
    for exponent in (1.0, 1.5, 2.0):
        costs = [7 + (size - 10) ** exponent for size in sizes]
        assert scaling.growth_exponent(sizes, costs) == pytest.approx(exponent)


def test_quadratic_cost_is_found():
    """In Python by the number of lines, within one call by CPU time."""
    sizes = (1, 100, 200, 400)
    loops = [lambda n=n: [0 for _ in range(n) for _ in range(n)] for n in sizes]
    assert scaling.growth_exponent(sizes, [*map(count_lines, loops)]) > 1.9
    hashes = [lambda n=n: sha256(bytes(100 * n * n)) for n in sizes]
    assert cpu_exponent(sizes, hashes) > 1.7
