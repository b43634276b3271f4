"""Data-loading benchmark, without and with training.

loader.py [DATASET] [SECONDS]
loader.py --train [RECIPE] [BATCH] [STEPS]

The first packs 10,000 sub-images of 96 pixels (from DATASET, by default BSD200 under $ESRJAX_DATA),
draws patches of 64 in batches of 16, and prints a Markdown table: images decoded for every batch or
cached in memory, cropped by threads of this process or by two worker processes. Startup time is
reported separately.

The second takes the first stage of a recipe, by default spanv2_291 with batches of 1024, and prints
the patches per second that its loader delivers alone and that `train` consumes, for each way of
cropping, below the rate of the compiled step alone.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from esrjax.data import datasets, tfds_writer
from esrjax.runtime import reexec_with_huge_pages
from esrjax.training import loader, recipe_loader
from esrjax.training.logging import Meter
from esrjax.training.recipe import Data
from esrjax.training.stage_trainer import StageTrainer
from esrjax.training.train import resolve_epochs

NUM_SUB_IMAGES, BATCH_SIZE = 10_000, 16
NO_CACHE_GIB, FULL_CACHE_GIB = 1e-6, 4.0  # the cache size must be positive
CROPS: tuple[dict[str, Any], ...] = (  # settings of `data`
    {"crop_on": "host"},
    {"crop_on": "host", "num_workers": 2},
    {"crop_on": "device"},
)


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


# --- beside a training step ---


def main_train(recipe: str = "spanv2_291", batch_size: str = "1024", steps: str = "4") -> None:
    """Measure a recipe's loaders and step, and print the table."""
    trainers = [make_trainer(recipe, int(batch_size), crop) for crop in CROPS]
    rate = step_rate(trainers[0], int(steps))
    print(f"{recipe}, batches of {batch_size}: the step alone takes {rate:,.0f} patches/s\n")
    print("| crop | workers | loader alone, patches/s | train, patches/s | waits for data | load |")
    print("|---|---|---|---|---|---|")
    for trainer in trainers:
        print(train_row(trainer, int(steps)), flush=True)


def make_trainer(recipe: str, batch_size: int, crop: dict[str, Any]) -> StageTrainer:
    """Return the trainer of the first stage, as `train` makes it, without its validation."""
    loaded = resolve_epochs(recipe_loader.load(recipe))
    stage = loaded.stage[0]
    data = dataclasses.replace(stage.data, batch_size=batch_size, **crop)
    stage = dataclasses.replace(stage, data=data, validation=None, select="last")
    loaded = dataclasses.replace(loaded, stage=(stage,), repeat=())
    return StageTrainer(loaded, loaded.runs[0], lambda _: sys.exit("the first stage has no other"))


def step_rate(trainer: StageTrainer, steps: int) -> float:
    """Return patches per second of the training step on one batch; two steps are not counted."""
    state, (lr, hr) = copy_state(trainer), next(trainer.batches(0))
    start = 0.0
    for index in range(-2, steps):
        state, loss = trainer.train_step(state, lr, hr)
        jax.block_until_ready(loss)
        start = time.perf_counter() if index < 0 else start
    return steps * len(lr) / (time.perf_counter() - start)


def train_row(trainer: StageTrainer, steps: int) -> str:
    """Return the row of the table for one way of cropping."""
    data, warmup = trainer.stage.data, warmup_batches(trainer)
    loader_alone = loader_rate(trainer, warmup, 4 * steps) * data.batch_size
    meter, source, state = Meter(), trainer.batches(0), copy_state(trainer)
    batches = meter.timed(source)
    for index in range(1 - warmup, steps + 1):  # as `train` does, it does not wait for the devices
        state, loss = trainer.train_step(state, *next(batches))
        meter.add(loss)
        if index == 0:
            jax.block_until_ready(loss)
            meter.reset()
    throughput = meter.throughput()
    close(source)
    speed = f"{loader_alone:,.0f} | {throughput.steps_per_s * data.batch_size:,.0f}"
    load = f"{throughput.data_wait:.1%} | {os.getloadavg()[0]:.1f}"
    return f"| {data.crop_on} | {data.num_workers} | {speed} | {load} |"


def warmup_batches(trainer: StageTrainer) -> int:
    """Return the number of batches that are not counted: every worker reads every image first."""
    data = trainer.stage.data
    num_images = sum(map(len, loader.usable_pairs(data, trainer.scale)))
    return 2 + -(-2 * data.num_workers * num_images // data.batch_size)


def loader_rate(trainer: StageTrainer, warmup: int, num_batches: int) -> float:
    """Return batches per second on the devices, after `warmup` that are not counted."""
    source, start = trainer.batches(0), 0.0
    for index in range(1 - warmup, num_batches + 1):
        jax.block_until_ready(next(source))
        start = time.perf_counter() if index == 0 else start
    seconds = time.perf_counter() - start
    close(source)
    return num_batches / seconds


def copy_state(trainer: StageTrainer) -> Any:
    """Return a copy of the initial state, since a step has its state donated."""
    return jax.tree.map(lambda leaf: leaf.copy(), trainer.state)


def close(source: Any) -> None:
    """End the threads or worker processes of a source of batches, if it has any."""
    if hasattr(source, "close"):
        source.close()


if __name__ == "__main__":
    reexec_with_huge_pages()  # as `esrjax train` does
    if sys.argv[1:2] == ["--train"]:
        main_train(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
