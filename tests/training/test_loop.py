"""A training, whole: what it writes, how it goes on, how it stops."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from runs import hashes, steps_noted, written

from esrjax import registry
from esrjax.model import open_method
from esrjax.training import folder as folders
from esrjax.training import loop
from esrjax.training import recipe as recipes
from esrjax.training.checkpoint import Checkpoints
from esrjax.training.validation import Validator
from esrjax.training.work import Work


@pytest.fixture
def recipe(said):
    return recipes.parse(said)


def test_a_run_leaves_weights_metrics_recipe_and_learns(tmp_path, said, pictures):
    said["stage"] = said["stage"][:1]
    said["stage"][0] |= {"steps": 150, "validate": {"set": str(pictures), "every": 90}}
    recipe, run, told = recipes.parse(said), tmp_path / "run", []
    loop.run(recipe, run, tell=told.append)
    assert [report.step for report in told] == steps_noted(run) == [50, 90, 100, 150]
    assert told[-1].loss < 0.9 * told[0].loss
    assert told[0].psnr is None and told[2].psnr is None and told[3].psnr > told[1].psnr
    assert recipes.load(run / "recipe.json") == recipe
    model = open_method("spanv2", run)
    assert model.sizes == {"channels": 4} and model.checkpoint.manifest.form == "deploy"
    assert recipe.sha256 in model.checkpoint.manifest.note
    assert model(np.zeros((9, 7, 3), np.uint8)).shape == (36, 28, 3)


def test_a_stage_starts_from_the_average_of_the_one_before(tmp_path, said):
    """With a rate too small to move anything, the second stage keeps what the first has left."""
    for stage, ema in zip(said["stage"], (0.5, None), strict=True):
        stage |= {"ema": ema}
    said["stage"][1] |= {"optimiser": {"name": "adam", "lr": 1e-30}, "schedule": {}}
    both = recipes.parse(said)
    alone = recipes.parse(said | {"stage": said["stage"][:1]})
    loop.run(both, tmp_path / "both")
    loop.run(alone, tmp_path / "alone")
    ours, theirs = (open_method("spanv2", tmp_path / name).checkpoint for name in ("both", "alone"))
    for key, value in theirs.tensors.items():
        np.testing.assert_array_equal(ours.tensors[key], value)


def test_a_stage_ends_when_it_no_longer_gets_better(tmp_path, said, pictures):
    """With a rate too small to move anything, every score after the first is no better."""
    said["stage"] = said["stage"][:1]
    validate = {"set": str(pictures), "every": 2, "patience": 3}
    optimiser = {"name": "adam", "lr": 1e-30}
    said["stage"][0] |= {"steps": 40, "optimiser": optimiser, "validate": validate, "ema": None}
    loop.run(recipes.parse(said), tmp_path / "run")
    assert steps_noted(tmp_path / "run")[-1] == 8
    loop.run(recipes.parse(said), tmp_path / "run", resume=True)
    assert steps_noted(tmp_path / "run")[-1] == 8


def test_the_best_weights_are_kept(tmp_path, said, pictures):
    """A rate that destroys the network after some steps leaves it as it was before."""
    said["stage"] = said["stage"][:1]
    said["stage"][0] |= {
        "steps": 12,
        "keep": "best",
        "ema": None,
        "validate": {"set": str(pictures), "every": 2},
        "optimiser": {"name": "adam", "lr": 1e-4},
        "schedule": {"name": "multistep", "milestones": [6], "gamma": 1e4},
    }
    told = []
    loop.run(recipes.parse(said), tmp_path / "run", tell=told.append)
    best = max(told, key=lambda report: report.psnr)
    assert best.step <= 6 and told[-1].psnr < best.psnr - 3
    scored = Validator.of(recipes.parse(said).stage[0].validate, registry.plain("spanv2"))
    kept = scored(open_method("spanv2", tmp_path / "run").net)
    assert kept.psnr == pytest.approx(best.psnr, abs=1e-4)


def test_an_epoch_crops_every_picture_once(tmp_path, said):
    said["stage"] = said["stage"][:1]
    del said["stage"][0]["steps"]
    said["stage"][0] |= {"epochs": 3}
    counted = loop.counted(recipes.parse(said))
    assert counted.stage[0].steps == 6  # 4 pictures in batches of 2, three times
    assert counted.stage[0].epochs is None


def test_pruned_taught_and_adapted_stages_follow_each_other(tmp_path, said):
    """A wide network, one narrower by a teacher, adapters on it; then all is one deploy form."""
    wide, narrow = said["stage"]
    narrow |= {
        "form": "deploy",
        "network": {"tail": 4},
        "prune": {"keep": "first"},
        "teacher": {"stage": "first", "taps": {"block_2": "block_2"}},
        "loss": {"l1": 1.0, "teacher_l1": 1.0, "teacher_affinity": 0.1},
        "repeat": 2,
        "steps": 3,
    }
    adapters = {"rank": 1, "alpha": 1.0, "where": ["block_*.c1"]}
    last = narrow | {"name": "last", "lora": adapters, "repeat": 1}
    del last["prune"]
    last["teacher"] = {"stage": "second"}
    last["loss"] = {"teacher_edges": 1.0}
    said |= {"method": "pkdsr", "sizes": {"channels": 4, "tail": 6}, "stage": [wide, narrow, last]}
    wide["steps"] = 3
    run = tmp_path / "run"
    loop.run(recipes.parse(said), run)
    names = ["00-first", "01-second-1-2", "02-second-2-2", "03-last"]
    assert sorted(p.stem for p in (run / "stages").iterdir()) == names
    model = open_method("pkdsr", run)
    assert model.sizes == {"channels": 4, "tail": 4}
    assert not (run / "train.safetensors").exists()
    assert not any("lora" in key for key in model.checkpoint.tensors)


def test_the_batch_is_spread_over_all_devices(recipe):
    work = Work.prepare(recipe, recipe.runs[0], loop._nothing_left)
    lr, _ = next(work.batches(0))
    assert jax.device_count() == 2 and len(lr.sharding.device_set) == 2
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(work.state))


def test_devices_do_not_change_the_weights(tmp_path, said):
    """Two devices and one, in float32: the sums are taken in another order, no more."""
    said["stage"] = said["stage"][:1]
    loop.run(recipes.parse(said), tmp_path / "two")
    one = subprocess.run(
        [sys.executable, "-m", "esrjax", "train", written(tmp_path, said), "-o", tmp_path / "one"],
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert one.returncode == 0, one.stderr
    ours, theirs = (open_method("spanv2", tmp_path / name).checkpoint for name in ("one", "two"))
    for key, value in theirs.tensors.items():
        np.testing.assert_allclose(ours.tensors[key], value, atol=1e-5)


def test_nan_stops_with_the_step_and_the_last_good_checkpoint(tmp_path, said):
    said["stage"] = said["stage"][:1]
    said["stage"][0] |= {
        "steps": 100,
        "optimiser": {"name": "adam", "lr": 1e-3},
        "schedule": {"name": "multistep", "milestones": [7], "gamma": 1e38},
    }
    with pytest.raises(loop.Diverged) as error:
        loop.run(recipes.parse(said), tmp_path / "run")
    text = str(error.value)
    assert "not a number at step 9 (first)" in text or "not a number at step 8 (first)" in text
    assert "the last good checkpoint is of step 5" in text and "lower the rate" in text
    assert Checkpoints(tmp_path / "run").latest() == 5


def test_a_folder_with_a_run_is_not_overwritten(tmp_path, recipe):
    loop.run(recipe, tmp_path / "run")
    before = hashes(tmp_path / "run")
    with pytest.raises(folders.RunExists) as error:
        loop.run(recipe, tmp_path / "run")
    assert "--resume" in str(error.value) and hashes(tmp_path / "run") == before


def test_a_run_of_another_recipe_is_not_gone_on_with(tmp_path, said):
    loop.run(recipes.parse(said), tmp_path / "run")
    said["stage"][1]["optimiser"]["lr"] = 5e-4
    with pytest.raises(folders.OtherRecipe) as error:
        loop.run(recipes.parse(said), tmp_path / "run", resume=True)
    assert "stage.1.optimiser.lr is 0.001 there and 0.0005 here" in str(error.value)


def test_there_must_be_a_run_to_resume(tmp_path, recipe):
    with pytest.raises(folders.NoRun, match="there is no run"):
        loop.run(recipe, tmp_path / "nothing", resume=True)


def test_a_folder_that_cannot_be_written_is_said_before_the_first_step(tmp_path, recipe):
    (tmp_path / "file").write_text("")
    with pytest.raises(folders.UnwritableRun) as error:
        loop.run(recipe, tmp_path / "file" / "run")
    assert "-o" in str(error.value)


def test_a_missing_set_is_said_with_where_it_was_looked_for(tmp_path, said, monkeypatch):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    said["stage"][0]["data"]["sets"] = ["DIV2L"]
    (tmp_path / "DIV2K").mkdir()
    with pytest.raises(Exception, match="did you mean 'DIV2K'") as error:
        loop.run(recipes.parse(said), tmp_path / "run")
    assert str(tmp_path) in str(error.value)
