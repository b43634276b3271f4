"""Batch sizes at equal patches seen: optimizers with equal tuning budgets, scored by PSNR.

large_batch.py FILE [--table]: SPANV2 from scratch on T91 and BSD200 (under $ESRJAX_DATA), for each
optimizer and batch size. Every learning rate of a list is trained once and scored on the 20 last
images of BSD200, which no training sees; the best one is trained with three other seeds and
scored on Set5 and Set14. FILE gets a line for each finished run, and a new start does only those
that it lacks. Prints the Markdown table, with `--table` of what FILE has so far.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esrjax.runtime import enable_compilation_cache, reexec_with_huge_pages

PATCHES, LR_SIDE = 8192, 16  # patches seen by a run, and their side in LR pixels
BATCH_SIZES = (8, 64, 512)
LEARNING_RATES = {  # as many of each, a factor of 4 apart
    "adam": (2.5e-4, 1e-3, 4e-3, 1.6e-2),
    "adamw": (2.5e-4, 1e-3, 4e-3, 1.6e-2),
    "muadamw": (2.5e-4, 1e-3, 4e-3, 1.6e-2),
    "lamb": (2e-3, 8e-3, 3.2e-2, 0.128),
    "lars": (0.25, 1.0, 4.0, 16.0),
}
FIELDS: dict[str, dict[str, float]] = {  # other keys of the optimizers
    "adamw": {"weight_decay": 1e-4},
    "muadamw": {"weight_decay": 1e-4},
    "lamb": {"weight_decay": 1e-4, "eps": 1e-6},
    "lars": {"weight_decay": 1e-4},
}
MUON_FACTOR = 10.0  # learning rate of Muon / that of AdamW, as in `spanv2_291`
WARMUP = 0.1  # of the steps
TRAIN_SETS, HELD_OUT, TEST_SETS = ("T91", "BSD200[:179]"), "BSD200[179:]", ("Set5", "Set14")
TUNING_SEED, TEST_SEEDS = 0, (1, 2, 3)

Settings = dict[str, Any]
Result = dict[str, Any]


def settings_of(optimizer: str, batch_size: int, learning_rate: float, seed: int) -> Settings:
    """Return what identifies a run in the file."""
    return {
        "optimizer": optimizer,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "patches": PATCHES,
        "lr_side": LR_SIDE,
    }


def recipe_of(settings: Settings) -> dict[str, Any]:
    """Return the recipe of a run, as plain data."""
    name, batch_size = settings["optimizer"], settings["batch_size"]
    steps, side = settings["patches"] // batch_size, 4 * settings["lr_side"]
    optimizer = {"name": name, "learning_rate": settings["learning_rate"], **FIELDS.get(name, {})}
    if name == "muadamw":
        optimizer["muon_learning_rate"] = MUON_FACTOR * settings["learning_rate"]
    stage = {
        "name": "only",
        "init_from": "scratch",
        "steps": steps,
        "loss": {"l1": 1.0},
        "optimizer": optimizer,
        "schedule": {"name": "cosine", "warmup_steps": round(WARMUP * steps)},
        "validation": {"dataset": HELD_OUT, "every": steps, "spec": "y"},
        "save_every": steps,
        "data": {
            "datasets": TRAIN_SETS,
            "hr_patch_sizes": [[side, side]],
            "batch_size": batch_size,
            "augment": ["hflip", "vflip", "rot90"],
            "undersized": "skip",
        },
    }
    return {"method": "spanv2", "seed": settings["seed"], "stage": [stage]}


def train_and_score(settings: Settings, test_sets: tuple[str, ...] = ()) -> Result:
    """Train one run; return PSNR (Y, dB) by dataset, None where the training has diverged."""
    import esrjax
    from esrjax.errors import Diverged
    from esrjax.training import recipe_loader, train

    start, reports = time.perf_counter(), list[Any]()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        try:
            train.run(recipe_loader.parse(recipe_of(settings)), run, on_report=reports.append)
        except Diverged:
            psnr = dict.fromkeys((HELD_OUT, *test_sets))
        else:
            psnr = {HELD_OUT: reports[-1].psnr}
            model = esrjax.load(run)
            psnr |= {name: esrjax.evaluate(model, name, "y").mean.psnr for name in test_sets}
    return {"psnr": psnr, "seconds": round(time.perf_counter() - start, 1)}


# --- campaign ---


class Campaign:
    """The runs that are finished, kept in a file of JSON lines.

    Args:
        file: The file; it need not exist.
    """

    def __init__(self, file: Path):
        self.file, self.results = file, dict[str, Result]()
        text = file.read_text() if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # the last line was cut by a kill
            file.write_text(whole)
        for line in whole.splitlines():
            entry = json.loads(line)
            self.results[json.dumps(entry["settings"])] = entry["result"]

    def find(self, settings: Settings) -> Result | None:
        """Return the result of a run, None if it is not finished."""
        return self.results.get(json.dumps(settings))

    def run(self, settings: Settings, test_sets: tuple[str, ...] = ()) -> None:
        """Train a run that is not finished, and append its result to the file."""
        if self.find(settings) is None:
            result = train_and_score(settings, test_sets)
            self.results[json.dumps(settings)] = result
            with self.file.open("a") as f:
                f.write(json.dumps({"settings": settings, "result": result}) + "\n")

    def tuning(self, optimizer: str, batch_size: int) -> dict[float, float | None]:
        """Return learning rate -> PSNR on the held-out images, of the finished runs."""
        scores: dict[float, float | None] = {}
        for rate in LEARNING_RATES[optimizer]:
            result = self.find(settings_of(optimizer, batch_size, rate, TUNING_SEED))
            if result is not None:
                scores[rate] = result["psnr"][HELD_OUT]
        return scores

    def best_rate(self, optimizer: str, batch_size: int) -> float | None:
        """Return the learning rate with the best held-out PSNR, None if all have diverged."""
        scores = {k: v for k, v in self.tuning(optimizer, batch_size).items() if v is not None}
        return max(scores, key=scores.__getitem__, default=None)

    def test_runs(self, optimizer: str, batch_size: int) -> list[Settings]:
        """Return the runs with the best learning rate."""
        rate = self.best_rate(optimizer, batch_size)
        if rate is None:
            return []
        return [settings_of(optimizer, batch_size, rate, seed) for seed in TEST_SEEDS]


def cells() -> Iterator[tuple[str, int]]:
    """Yield every optimizer with every batch size."""
    for batch_size in BATCH_SIZES:
        for optimizer in LEARNING_RATES:
            yield optimizer, batch_size


def run_all(campaign: Campaign) -> None:
    """Train what is not finished."""
    for optimizer, batch_size in cells():
        for rate in LEARNING_RATES[optimizer]:
            campaign.run(settings_of(optimizer, batch_size, rate, TUNING_SEED))
        for settings in campaign.test_runs(optimizer, batch_size):
            campaign.run(settings, TEST_SETS)


# --- table ---


def table(campaign: Campaign) -> str:
    """Return the results as a Markdown table."""
    header = ["batch", "steps", "optimizer", "held-out PSNR by learning rate", "rate", *TEST_SETS]
    rows = [header, ["---:", "---:", "---", "---", "---:", *["---"] * len(TEST_SETS)]]
    rows += [row(campaign, *cell) for cell in cells() if campaign.tuning(*cell)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(campaign: Campaign, optimizer: str, batch_size: int) -> list[str]:
    """Return the cells of one optimizer and batch size."""
    tuning = campaign.tuning(optimizer, batch_size)
    scores = ", ".join(f"{rate:g}: {decibels(psnr)}" for rate, psnr in tuning.items())
    best = campaign.best_rate(optimizer, batch_size)
    finished = [campaign.find(settings) for settings in campaign.test_runs(optimizer, batch_size)]
    tests = [
        mean_and_deviation([result["psnr"][name] for result in finished if result])
        for name in TEST_SETS
    ]
    steps = PATCHES // batch_size
    return [
        str(batch_size),
        f"{steps:,}",
        optimizer,
        scores,
        "-" if best is None else f"{best:g}",
        *tests,
    ]


def decibels(psnr: float | None) -> str:
    """Return a PSNR as text."""
    return "diverged" if psnr is None else f"{psnr:.2f}"


def mean_and_deviation(values: list[float | None]) -> str:
    """Return mean ± sample standard deviation, "-" without two values."""
    finite = [value for value in values if value is not None]
    if len(finite) < len(values):
        return f"{len(values) - len(finite)} of {len(values)} diverged"
    if len(finite) < 2:
        return "-"
    return f"{statistics.mean(finite):.2f} ± {statistics.stdev(finite):.2f}"


def main() -> None:
    """Run the campaign, and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    campaign = Campaign(args.file)
    if not args.table:
        run_all(campaign)
    print(table(campaign))


if __name__ == "__main__":
    enable_compilation_cache()
    reexec_with_huge_pages()
    main()
