"""Soak test: memory, threads and descriptors of one process that works for long.

soak.py [upscales|steps ...] [--write]: 2,000 upscales of 300 sizes of images, and a training of
5,000 steps with a validation every 10. Each runs in a process of its own. The exit code is 1 if
one of them grows in its last half; `--write` draws docs/soak-upscales.svg and docs/soak-steps.svg.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from curves import render_svg
from PIL import Image

from esrjax.runtime import enable_compilation_cache

ROOT = Path(__file__).parents[1]
UPSCALES, SIZES, STEPS, VALIDATE_EVERY = 2000, 300, 5000, 10
SAMPLES = 200
# Medians, since threads and descriptors come and go while a checkpoint is written.
MAX_GROWTH = {"memory": 0.03, "threads": 0.0, "descriptors": 0.0}  # of the second half, a fraction
RECIPE = f"""
method = "spanv2"
seed = 1
hparams = {{ channels = 4 }}
[[stage]]
name = "soak"
init_from = "scratch"
steps = {STEPS}
loss = {{ l1 = 1.0 }}
optimizer = {{ name = "adam", learning_rate = 1e-3 }}
save_every = 500
data = {{ datasets = ["hr"], hr_patch_sizes = [[32, 32]], batch_size = 4 }}
validation = {{ dataset = "hr", every = {VALIDATE_EVERY} }}
"""

Sample = dict[str, float]


def measure() -> Sample:
    """Return resident memory in MiB, and the numbers of threads and open descriptors."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "memory": pages * 4096 / 2**20,
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }


def upscale_sizes() -> Iterator[None]:
    """Upscale images of random content and one of `SIZES` sizes, in random order."""
    from esrjax.inference import open_model

    model, rng = open_model("spanv2"), np.random.default_rng(0)
    for _ in range(UPSCALES):
        index = int(rng.integers(SIZES))
        model(rng.integers(0, 256, (8 + index % 20, 8 + index // 20, 3), np.uint8))
        yield


def sample_upscales() -> list[Sample]:
    """Return measurements of `upscale_sizes`."""
    samples: list[Sample] = []
    for count, _ in enumerate(upscale_sizes(), start=1):
        if count % (UPSCALES // SAMPLES) == 0:
            gc.collect()
            samples.append({"x": count, **measure()})
    return samples


def sample_steps() -> list[Sample]:
    """Return measurements of a training, which a thread makes for each tenth validation."""
    from esrjax.cli import main

    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "hr").mkdir()
        pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
        for name, image in zip("ab", pixels, strict=True):
            Image.fromarray(image).save(f"{folder}/hr/{name}.png")
        recipe, log = Path(folder) / "recipe.toml", Path(folder) / "run/metrics.jsonl"
        recipe.write_text(RECIPE.replace('"hr"', f'"{folder}/hr"'))
        is_done = threading.Event()

        def watch() -> None:
            while not is_done.wait(0.5):
                lines = log.read_text().splitlines() if log.exists() else []
                if lines:
                    samples.append({"x": json.loads(lines[-1])["step"], **measure()})

        thread = threading.Thread(target=watch)
        thread.start()
        sys.argv = ["esrjax", "train", str(recipe), "-o", f"{folder}/run"]
        try:
            main()
        except SystemExit as error:
            assert not error.code, error.code
        finally:
            is_done.set()
            thread.join()
    return samples


SOAKS = {"upscales": sample_upscales, "steps": sample_steps}


def find_growth(samples: list[Sample]) -> dict[str, float]:
    """Return the growth from the median of the third quarter to that of the last, if too large."""
    quarter = len(samples) // 4
    growth = {}
    for key, limit in MAX_GROWTH.items():
        before = median(sample[key] for sample in samples[-2 * quarter : -quarter])
        after = median(sample[key] for sample in samples[-quarter:])
        if after / before - 1 > limit:
            growth[key] = after / before - 1
    return growth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("soaks", nargs="*", default=list(SOAKS), metavar="SOAK")
    parser.add_argument("--write", action="store_true", help="draw docs/soak-*.svg")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:  # the last line of its output
        enable_compilation_cache()
        samples = SOAKS[options.soaks[0]]()
        print(json.dumps(samples))
        return 0
    exit_code = 0
    for name in options.soaks:
        start = time.monotonic()
        command = [sys.executable, __file__, name, "--child"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        samples: list[Sample] = json.loads(ended.stdout.splitlines()[-1])
        growth = find_growth(samples)
        exit_code |= bool(growth)
        last = {key: round(value) for key, value in samples[-1].items()}
        print(
            f"{name}: {time.monotonic() - start:.0f} s, at the end {last}, grows: {growth or '-'}"
        )
        if options.write:
            curves = {key: [(s["x"], s[key]) for s in samples] for key in MAX_GROWTH}
            title = "resident memory, MiB; numbers of threads and of open descriptors"
            svg = render_svg(curves, title, name, low=0)
            (ROOT / f"docs/soak-{name}.svg").write_text(svg)
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())
