"""The campaign of tools/large_batch.py, with scores in place of trainings."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import large_batch

from esrjax.training import recipe_loader


@pytest.fixture
def trained(monkeypatch):
    """Names and seeds of what is trained; a score is the learning rate, adam diverges at 4."""
    runs = []

    def train_and_score(settings, test_sets=()):
        runs.append((settings["optimizer"], settings["learning_rate"], settings["seed"]))
        diverges = settings["optimizer"] == "adam" and settings["learning_rate"] == 4.0
        value = None if diverges else settings["learning_rate"] + settings["seed"] / 10
        return {"psnr": dict.fromkeys((large_batch.HELD_OUT, *test_sets), value), "seconds": 0.0}

    monkeypatch.setattr(large_batch, "train_and_score", train_and_score)
    monkeypatch.setattr(large_batch, "BATCH_SIZES", (8,))
    monkeypatch.setattr(large_batch, "LEARNING_RATES", {"adam": (1.0, 2.0, 4.0), "lars": (1.0,)})
    return runs


def test_best_rate_is_trained_with_three_seeds_and_what_is_finished_is_not_repeated(
    tmp_path, trained
):
    file = tmp_path / "runs.jsonl"
    large_batch.run_all(large_batch.Campaign(file))
    adam = [("adam", rate, 0) for rate in (1.0, 2.0, 4.0)] + [("adam", 2.0, i) for i in (1, 2, 3)]
    lars = [("lars", 1.0, seed) for seed in (0, 1, 2, 3)]
    assert trained == adam + lars
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while it wrote the last
    trained.clear()
    campaign = large_batch.Campaign(file)
    large_batch.run_all(campaign)
    assert trained == lars[-1:] and file.read_text() == "".join(lines)
    row = large_batch.table(campaign).splitlines()[2]
    assert "1: 1.00, 2: 2.00, 4: diverged | 2 | 2.20 ± 0.10 | 2.20 ± 0.10" in row


@pytest.mark.parametrize("name", large_batch.LEARNING_RATES)
def test_recipes_see_equally_many_patches(name):
    for batch_size in large_batch.BATCH_SIZES:
        settings = large_batch.settings_of(name, batch_size, 1e-3, seed=1)
        stage = recipe_loader.parse(large_batch.recipe_of(settings)).stage[0]
        assert stage.steps * stage.data.batch_size == large_batch.PATCHES
        assert stage.optimizer.name == name and 0 < stage.schedule.warmup_steps < stage.steps
