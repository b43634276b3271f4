"""Data-loading benchmark, without training: loader.py [DATASET] [SECONDS]

Packs 10,000 sub-images of 96 pixels (from DATASET, by default BSD200 under $ESRJAX_DATA), draws
patches of 64 in batches of 16, and prints a Markdown table: images decoded for every batch or
cached in memory, cropped by threads of this process or by two worker processes. Startup time is
reported separately.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from esrjax.data import datasets, tfds_writer
from esrjax.training import loader
from esrjax.training.recipe import Data

NUM_SUB_IMAGES, BATCH_SIZE = 10_000, 16
NO_CACHE_GIB, FULL_CACHE_GIB = 1e-6, 4.0  # the cache size must be positive


def main(name: str = "BSD200", seconds: str = "10") -> None:
    """Measure all settings and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        start, grid = time.perf_counter(), tfds_writer.SubImageGrid(crop_size=96, step=48)
        dataset = tfds_writer.pack(datasets.list_pairs(name), "loader", Path(folder), grid)
        seconds_spent, size_mib = time.perf_counter() - start, dataset.num_bytes / 2**20
        speed = f"{seconds_spent:.0f} s, {size_mib:.0f} MiB"
        print(f"packed {dataset.num_sub_images} sub-images in {speed}\n")
        os.environ["ESRJAX_DATA"] = folder
        base = Data(
            datasets=(f"tfds:loader[:{NUM_SUB_IMAGES}]",),
            hr_patch_sizes=((64, 64),),
            batch_size=BATCH_SIZE,
            augment=("hflip",),
        )
        print("| images | workers | start-up, s | batches/s | images/s | load |")
        print("|---|---|---|---|---|---|")
        for cache_gib, num_workers in ((NO_CACHE_GIB, 0), (NO_CACHE_GIB, 2), (FULL_CACHE_GIB, 0)):
            data = dataclasses.replace(base, cache_gib=cache_gib, num_workers=num_workers)
            print(table_row(data, float(seconds)), flush=True)


def table_row(data: Data, seconds: float) -> str:
    """Return the row of the table for one setting."""
    begin = time.perf_counter()
    source = loader.open_batches(data, 4, seed=1).iter_from(0, 10**6)
    next(source)
    startup_s = time.perf_counter() - begin
    batches_per_s = count_batches(source, seconds) / seconds
    source.close()
    label = "cached in memory" if data.cache_gib == FULL_CACHE_GIB else "decoded for every batch"
    load = os.getloadavg()[0]
    speed = f"{startup_s:.1f} | {batches_per_s:.0f} | {batches_per_s * BATCH_SIZE:.0f}"
    return f"| {label} | {data.num_workers} | {speed} | {load:.1f} |"


def count_batches(source: Iterator[object], seconds: float) -> int:
    """Return the number of batches that arrive within `seconds`."""
    end, num_batches = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        next(source)
        num_batches += 1
    return num_batches


if __name__ == "__main__":
    main(*sys.argv[1:])
