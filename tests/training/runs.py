"""Training images, results of runs, and ways to stop a run."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from esrjax.data import image_io
from esrjax.training import train
from esrjax.training.checkpoint import Checkpointer

WEIGHTS = ("train.safetensors", "deploy.safetensors")


def write_images(folder: Path) -> Path:
    """Write four smooth HR images of different sizes."""
    rng = np.random.default_rng(0)
    for index, (h, w) in enumerate([(48, 64), (56, 48), (64, 64), (48, 48)]):
        coarse = rng.integers(0, 256, (h // 8, w // 8, 3))
        image_io.write_image(
            folder / f"{index}.png", coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8)
        )
    return folder


def hashes(run: Path) -> list[str]:
    """Return the SHA-256 of each file of final weights."""
    return [hashlib.sha256((run / name).read_bytes()).hexdigest() for name in WEIGHTS]


def logged_steps(run: Path) -> list[int]:
    """Return the steps in `metrics.jsonl`."""
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def stop_after(stop_step: int, recipe, run: Path, monkeypatch) -> None:
    """Run until the checkpoint of `stop_step` is saved, then raise."""
    save = Checkpointer.save

    def save_and_stop(self, step, state, info):
        save(self, step, state, info)
        if step == stop_step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpointer, "save", save_and_stop)
        train.run(recipe, run)


def write_recipe(tmp_path: Path, recipe_dict) -> str:
    """Write the recipe to a file, and return its path."""
    file = tmp_path / "my-recipe.json"
    file.write_text(json.dumps(recipe_dict))
    return str(file)
