"""Runs of whole recipes: files, resume, early stopping, errors."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
from runs import hashes, logged_steps, write_recipe

from esrjax import registry
from esrjax.data import image_io
from esrjax.errors import (
    CheckpointError,
    Diverged,
    NotFound,
    RecipeError,
    UnwritableFile,
    UserError,
)
from esrjax.inference import open_method
from esrjax.nn.checkpoint_io import read_checkpoint
from esrjax.training import recipe_loader, train
from esrjax.training.checkpoint import Checkpointer
from esrjax.training.stage_trainer import StageTrainer, Validator


@pytest.fixture
def recipe_dict(crumb_recipe_dict):
    return crumb_recipe_dict


@pytest.fixture
def recipe(recipe_dict):
    return recipe_loader.parse(recipe_dict)


def shorten(recipe_dict):
    """Leave two steps of the first stage, and return the recipe."""
    recipe_dict["stage"] = recipe_dict["stage"][:1]
    recipe_dict["stage"][0] |= {"steps": 2}
    return recipe_dict


def test_run_writes_weights_metrics_recipe_and_learns(tmp_path, recipe_dict, image_dir):
    recipe_dict["stage"] = recipe_dict["stage"][:1]
    recipe_dict["stage"][0] |= {
        "steps": 150,
        "validation": {"dataset": str(image_dir), "every": 90},
    }
    recipe, run, reports = recipe_loader.parse(recipe_dict), tmp_path / "run", []
    train.run(recipe, run, on_report=reports.append)
    assert [report.step for report in reports] == logged_steps(run) == [50, 90, 100, 150]
    assert reports[-1].loss < 0.9 * reports[0].loss
    assert reports[0].psnr is None and reports[2].psnr is None and reports[3].psnr > reports[1].psnr
    assert recipe_loader.load(run / "recipe.json") == recipe
    model = open_method("crumb", run)
    assert model.hparams == {"kernel_size": 5} and model.checkpoint.metadata.form == "deploy"
    assert recipe.sha256 in model.checkpoint.metadata.note
    assert model(np.zeros((9, 7, 3), np.uint8)).shape == (36, 28, 3)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_stage_starts_from_averaged_or_raw_weights(tmp_path, recipe_dict, weights):
    """With a tiny learning rate, the second stage keeps what it starts from."""
    for stage, ema in zip(recipe_dict["stage"], (0.5, None), strict=True):
        stage |= {"ema": ema, "ema_warmup": False, "data": recipe_dict["stage"][1]["data"]}
        stage["steps"] = 3
    recipe_dict["stage"][1] |= {
        "init_from": {"stage": "first", "weights": weights},
        "optimizer": {"name": "adam", "learning_rate": 1e-30},
        "schedule": {},
    }
    run = tmp_path / "run"
    train.run(recipe_loader.parse(recipe_dict), run)
    stages = {path.stem: read_checkpoint(path).state_dict for path in (run / "stages").iterdir()}
    averaged, raw = stages["00-first"], stages.get("00-first.raw")
    result, expected = stages["01-second"], averaged if weights == "ema" else raw
    for key, value in expected.items():
        np.testing.assert_array_equal(result[key], value)
    assert (raw is not None) == (weights == "raw")
    assert raw is None or any(not np.array_equal(raw[key], averaged[key]) for key in raw)


def test_patience_ends_a_stage(tmp_path, recipe_dict, image_dir):
    """With a tiny learning rate, no score after the first is an improvement."""
    recipe_dict["stage"] = recipe_dict["stage"][:1]
    validation = {"dataset": str(image_dir), "every": 2, "patience": 3}
    optimizer = {"name": "adam", "learning_rate": 1e-30}
    recipe_dict["stage"][0] |= {
        "steps": 40,
        "optimizer": optimizer,
        "ema": None,
        "ema_warmup": False,
    }
    recipe_dict["stage"][0]["validation"] = validation
    train.run(recipe_loader.parse(recipe_dict), tmp_path / "run")
    assert logged_steps(tmp_path / "run")[-1] == 8
    train.run(recipe_loader.parse(recipe_dict), tmp_path / "run", resume=True)
    assert logged_steps(tmp_path / "run")[-1] == 8


def test_patience_is_read_after_validations_only(recipe_dict, image_dir):
    """Reading it after every step would wait for the devices."""
    recipe_dict["stage"][0]["validation"] = {"dataset": str(image_dir), "every": 2, "patience": 3}
    recipe = recipe_loader.parse(recipe_dict)
    trainer = StageTrainer(recipe, recipe.runs[0], train._no_stage)
    for evals, step, expected in [(None, 1, False), (2, 2, False), (3, 2, True), (None, 12, True)]:
        best = replace(trainer.state.best, evals_since_best=evals)  # int(None) would raise
        assert trainer.is_done(replace(trainer.state, best=best), step) == expected


def test_select_best_returns_the_best_weights(tmp_path, recipe_dict, image_dir):
    """A learning rate that destroys the network after some steps does not change the result."""
    # SPANV2 starts as nearest-neighbour upsampling: there is something to destroy.
    recipe_dict |= {"method": "spanv2", "hparams": {"channels": 4}}
    recipe_dict["stage"] = recipe_dict["stage"][:1]
    recipe_dict["stage"][0] |= {
        "steps": 12,
        "select": "best",
        "ema": None,
        "ema_warmup": False,
        "validation": {"dataset": str(image_dir), "every": 2},
        "optimizer": {"name": "adam", "learning_rate": 1e-4},
        "schedule": {"name": "multistep", "milestones": [6], "gamma": 1e4},
    }
    reports = []
    train.run(recipe_loader.parse(recipe_dict), tmp_path / "run", on_report=reports.append)
    best = max(reports, key=lambda report: report.psnr)
    assert best.step <= 6 and reports[-1].psnr < best.psnr - 3
    validation = recipe_loader.parse(recipe_dict).stage[0].validation
    validator = Validator(validation, registry.get_method("spanv2"), 4)
    metrics = validator(open_method("spanv2", tmp_path / "run").net)
    assert metrics.psnr == pytest.approx(best.psnr, abs=1e-4)


def test_epoch_crops_every_image_once(tmp_path, recipe_dict):
    recipe_dict["stage"] = recipe_dict["stage"][:1]
    del recipe_dict["stage"][0]["steps"]
    recipe_dict["stage"][0] |= {"epochs": 3}
    recipe = train.resolve_epochs(recipe_loader.parse(recipe_dict))
    assert recipe.stage[0].steps == 6  # 4 images in batches of 2, three times
    assert recipe.stage[0].epochs is None


def test_raw_weights_of_a_stage_without_average_are_an_error(recipe_dict):
    first, second = recipe_dict["stage"]
    second["init_from"] = {"stage": "first", "weights": "raw"}
    del first["ema"], first["ema_warmup"]
    with pytest.raises(RecipeError, match='weights = "raw" has no effect'):
        recipe_loader.parse(recipe_dict)


def test_pruning_distillation_and_lora_stages_in_sequence(tmp_path, recipe_dict):
    """A wide network, a narrower one with a teacher, adapters on that; then one deploy form."""
    first, narrow = recipe_dict["stage"]
    first["data"] = narrow["data"]  # patches of one size
    narrow |= {
        "form": "deploy",
        "hparams": {"tail_channels": 4},
        "prune": {"criterion": "first"},
        "teacher": {"stage": "first", "taps": {"block_2": "block_2"}},
        "loss": {"l1": 1.0, "teacher_l1": 1.0, "teacher_affinity": 0.1},
        "repeat": 2,
        "steps": 3,
    }
    adapters = {"rank": 1, "alpha": 1.0, "target_modules": ["block_*.c1"]}
    last = narrow | {"name": "last", "lora": adapters, "repeat": 1}
    del last["prune"]
    last["teacher"] = {"stage": "second"}
    last["loss"] = {"teacher_edges": 1.0}
    hparams = {"channels": 4, "tail_channels": 6}
    recipe_dict |= {"method": "pkdsr", "hparams": hparams, "stage": [first, narrow, last]}
    first["steps"] = 3
    run = tmp_path / "run"
    train.run(recipe_loader.parse(recipe_dict), run)
    names = ["00-first", "01-second-1-2", "02-second-2-2", "03-last"]
    assert sorted(p.stem for p in (run / "stages").iterdir()) == names
    model = open_method("pkdsr", run)
    assert model.hparams == {"channels": 4, "tail_channels": 4}
    assert not (run / "train.safetensors").exists()
    assert not any("lora" in key for key in model.checkpoint.state_dict)


def test_batch_is_sharded_over_all_devices(recipe):
    trainer = StageTrainer(recipe, recipe.runs[0], train._no_stage)
    lr, _ = next(trainer.batches(0))
    assert jax.device_count() == 2 and len(lr.sharding.device_set) == 2
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(trainer.state))


@pytest.mark.slow  # tests/training/test_distributed.py compares processes and devices
def test_weights_do_not_depend_on_devices(tmp_path, recipe_dict):
    """In float32, two devices and one differ only by the order of sums."""
    recipe_dict["stage"] = recipe_dict["stage"][:1]
    train.run(recipe_loader.parse(recipe_dict), tmp_path / "two")
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "esrjax",
            "train",
            write_recipe(tmp_path, recipe_dict),
            "-o",
            tmp_path / "one",
        ],
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    result, expected = (open_method("crumb", tmp_path / name).checkpoint for name in ("one", "two"))
    for key, value in expected.state_dict.items():
        np.testing.assert_allclose(result.state_dict[key], value, atol=1e-5)


def test_divergence_is_reported_with_step_and_last_checkpoint(tmp_path, recipe_dict):
    recipe_dict["stage"] = recipe_dict["stage"][:1]
    recipe_dict["stage"][0] |= {
        "steps": 100,
        "optimizer": {"name": "adam", "learning_rate": 1e-3},
        "schedule": {"name": "multistep", "milestones": [7], "gamma": 1e38},
    }
    with pytest.raises(Diverged) as error:
        train.run(recipe_loader.parse(recipe_dict), tmp_path / "run")
    problem, remedy = error.value.problem, error.value.remedy
    assert "step 9 (first)" in problem or "step 8 (first)" in problem
    assert "checkpoint is of step 5" in remedy and "learning rate" in remedy
    assert Checkpointer(tmp_path / "run").latest() == 5


def test_existing_run_is_not_overwritten(tmp_path, recipe_dict):
    recipe = recipe_loader.parse(shorten(recipe_dict))
    train.run(recipe, tmp_path / "run")
    before = hashes(tmp_path / "run")
    with pytest.raises(UnwritableFile) as error:
        train.run(recipe, tmp_path / "run")
    assert "--resume" in str(error.value) and hashes(tmp_path / "run") == before


def test_resume_with_another_recipe_is_reported(tmp_path, recipe_dict):
    shorten(recipe_dict)
    train.run(recipe_loader.parse(recipe_dict), tmp_path / "run")
    recipe_dict["stage"][0]["optimizer"]["learning_rate"] = 5e-4
    with pytest.raises(CheckpointError) as error:
        train.run(recipe_loader.parse(recipe_dict), tmp_path / "run", resume=True)
    problem = error.value.problem
    assert "stage.0.optimizer.learning_rate" in problem
    assert "0.001" in problem and "0.0005" in problem


def test_resume_without_a_run_is_reported(tmp_path, recipe):
    with pytest.raises(NotFound, match="nothing"):
        train.run(recipe, tmp_path / "nothing", resume=True)


def test_unwritable_folder_is_reported_before_the_first_step(tmp_path, recipe):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableFile) as error:
        train.run(recipe, tmp_path / "file" / "run")
    assert "-o" in str(error.value)


def test_missing_dataset_is_reported_with_the_searched_folder(tmp_path, recipe_dict, monkeypatch):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    recipe_dict["stage"][0]["data"]["datasets"] = ["DIV2L"]
    (tmp_path / "DIV2K").mkdir()
    with pytest.raises(UserError) as error:
        train.run(recipe_loader.parse(recipe_dict), tmp_path / "run")
    text = str(error.value)
    assert "'DIV2L'" in text and "'DIV2K'" in text and str(tmp_path) in text


@pytest.mark.parametrize("damage", ["cut", "size"])
def test_bad_validation_image_is_reported_before_anything_is_written(tmp_path, recipe_dict, damage):
    hr, lr = tmp_path / "valid/HR/a.png", tmp_path / "valid/LR_bicubic_X4/ax4.png"
    for path, side in ((hr, 48), (lr, 12 if damage == "cut" else 13)):
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        image_io.write_image(path, pixels)
    if damage == "cut":
        hr.write_bytes(hr.read_bytes()[:-1000])
    recipe_dict["stage"][1]["validation"] = {"dataset": str(tmp_path / "valid"), "every": 2}
    with pytest.raises(UserError, match=r"a\.png|'a'|ax4"):
        train.run(recipe_loader.parse(recipe_dict), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_disk_without_room_for_checkpoints_is_reported_before_the_first_step(
    tmp_path, recipe, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UnwritableFile, match=r"4 checkpoints take .* 0\.0 MiB free"):
        train.run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
