"""How many batches a second are read, without a training: loader.py [SET] [SECONDS]

Packs 10,000 sub-images of 96 pixels (of SET, by default BSD200 under $ESRJAX_DATA), draws patches
of 64 in batches of 16, and prints a table in Markdown: read each time or kept in memory, cut by
threads of this process or by two others. What starting takes is told apart.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from esrjax.pictures import packing, sets
from esrjax.training import batches
from esrjax.training.recipe import Data

PIECES, BATCH, NOTHING, ALL = 10_000, 16, 1e-6, 4.0  # the last two in GiB


def main(name: str = "BSD200", seconds: str = "10") -> None:
    """Measure every way and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        begun, cut = time.perf_counter(), packing.Cut(side=96, step=48)
        made = packing.pack(sets.select(name), "loader", Path(folder), cut)
        spent, size = time.perf_counter() - begun, made.bytes / 2**20
        print(f"packed {made.pieces} sub-images in {spent:.0f} s, {size:.0f} MiB\n")
        os.environ["ESRJAX_DATA"] = folder
        packed = Data(
            sets=(f"tfds:loader[:{PIECES}]",), patches=((64, 64),), batch=BATCH, augment=("hflip",)
        )
        print("| pictures | workers | start, s | batches/s | images/s | load |")
        print("|---|---|---|---|---|---|")
        for kept, workers in ((NOTHING, 0), (NOTHING, 2), (ALL, 0)):
            data = dataclasses.replace(packed, memory=kept, workers=workers)
            print(row(data, float(seconds)), flush=True)


def row(data: Data, seconds: float) -> str:
    """One line of the table."""
    begun = time.perf_counter()
    source = batches.open_batches(data, 4, seed=1).since(0, 10**6)
    next(source)
    start = time.perf_counter() - begun
    rate = count(source, seconds) / seconds
    source.close()
    how = "kept in memory" if data.memory == ALL else "read each time"
    load = os.getloadavg()[0]
    return (
        f"| {how} | {data.workers} | {start:.1f} | {rate:.0f} | {rate * BATCH:.0f} | {load:.1f} |"
    )


def count(source: Iterator[object], seconds: float) -> int:
    """How many come in that time."""
    end, found = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        next(source)
        found += 1
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
