"""Pictures to train on, what a run has left, and how it is stopped."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from esrjax.pictures import files
from esrjax.training import loop
from esrjax.training.checkpoint import Checkpoints

WEIGHTS = ("train.safetensors", "deploy.safetensors")


def drawn(folder: Path) -> Path:
    """Four smooth HR pictures of different sizes."""
    draw = np.random.default_rng(0)
    for index, (h, w) in enumerate([(48, 64), (56, 48), (64, 64), (48, 48)]):
        coarse = draw.integers(0, 256, (h // 8, w // 8, 3))
        files.write(folder / f"{index}.png", coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8))
    return folder


def hashes(run: Path) -> list[str]:
    return [hashlib.sha256((run / name).read_bytes()).hexdigest() for name in WEIGHTS]


def steps_noted(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def stop_after(at: int, recipe, run: Path, monkeypatch) -> None:
    """Run until the checkpoint of step `at` is written, then fail."""
    save = Checkpoints.save

    def save_and_stop(self, step, state, facts):
        save(self, step, state, facts)
        if step == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoints, "save", save_and_stop)
        loop.run(recipe, run)


def written(tmp_path: Path, said) -> str:
    """The recipe as a file."""
    file = tmp_path / "recipe-given.json"
    file.write_text(json.dumps(said))
    return str(file)
