"""The commands `train`, `recipes` and `demo`."""

import json
import tomllib

import numpy as np
import pytest

from esrjax.cli import demo
from esrjax.data import image_io


@pytest.fixture
def recipe_file(tmp_path, recipe_dict):
    """The small recipe as a file, its first stage alone."""
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(recipe_dict | {"stage": recipe_dict["stage"][:1]}))
    return file


def test_run_directory_is_a_checkpoint_for_other_commands(esrjax, tmp_path, recipe_file, image_dir):
    run = tmp_path / "run"
    overrides = ["--set", "stage.0.steps=6", "--set", "stage.0.ema_warmup=false"]
    trained = esrjax("train", recipe_file, "-o", run, *overrides)
    assert trained.code == 0 and "6/6" in trained.out and "data wait" in trained.out
    assert "53.1% of the initial weights" in trained.err
    scored = esrjax("eval", "spanv2", "--checkpoint", run, "--data", image_dir, "--json").json
    assert set(scored["images"]) == {"0", "1", "2", "3"} and np.isfinite(scored["mean"]["psnr"])
    convert = ["weights", "convert", "spanv2", run, "-o", tmp_path / "net.pth", "--to", "torch"]
    assert esrjax(*convert).code == 0
    big = tmp_path / "big.png"
    small = image_dir / "0.png"
    assert esrjax("upscale", small, "-o", big, "--checkpoint", run).code == 0
    assert image_io.read_image(big).pixels.shape == (192, 256, 3)


def test_resume_needs_only_the_run_directory(esrjax, tmp_path, recipe_file):
    run = tmp_path / "run"
    assert esrjax("train", recipe_file, "-o", run).code == 0
    before = (run / "deploy.safetensors").read_bytes()
    assert esrjax("train", "-o", run, "--resume").code == 0
    assert (run / "deploy.safetensors").read_bytes() == before
    override = "stage.0.optimizer.learning_rate=0.5"
    result = esrjax("train", "-o", run, "--resume", "--set", override)
    assert result.code == 2 and "stage.0.optimizer.learning_rate" in result.err
    assert "0.001" in result.err and "0.5" in result.err
    result = esrjax("train", "-o", run, "--resume", "--set", "stage.0.save_every=3")
    assert result.code == 0 and '"save_every": 3' in (run / "recipe.json").read_text()
    assert (run / "deploy.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["train", "quick"], ["-o", "esrjax train quick -o runs/quick"]),
        (["train", "-o", "run"], ["RECIPE", "--resume"]),
        (["train", "-o", "run", "--resume"], ["RECIPE"]),
        (["train", "quick", "--list-params"], ["--list-params", "--dry-run"]),
        (["train", "quick", "-o", "run", "--json"], ["--json", "--dry-run"]),
        (["train", "quik", "-o", "run"], ["'quik'", "quick, ", "spanv2"]),
        (
            ["train", "quick", "-o", "run", "--set", "stage.0.optimiser.lr=1", "--set", "seed=x"],
            ["2 errors", "'optimizer'", "seed should be a valid integer"],
        ),
        (
            ["train", "quick", "-o", "run", "--set", "stage.0.data.datasets=['DIV9K']"],
            ["'DIV9K'", "ESRJAX_DATA"],
        ),
        (["train", "quick", "-o", "run", "--set", "hparams.chanels=8"], ["chanels", "channels=32"]),
        (["recipes", "show", "quik"], ["'quik'", "quick, "]),
        (["recipes", "show", "quick", "--set", "seed=5"], ["--set", "--resolved"]),
    ],
)
def test_user_errors_are_reported_and_leave_no_files(esrjax, tmp_path, monkeypatch, args, parts):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    result = esrjax(*args)
    assert result.code == 2 and result.err.startswith("esrjax: ") and "remedy" in result.err
    assert all(part in result.err for part in parts), result.err
    assert not (tmp_path / "run").exists()


def test_dry_run_shows_stages_and_missing_datasets(esrjax, monkeypatch, tmp_path):
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    result = esrjax("train", "spanv2", "--dry-run")
    assert result.code == 0 and "2,000,000 steps" in result.out
    assert "1 l1 + 0.05 fft" in result.out and "5 mse + 3 gradient" in result.out
    assert any("missing: " in line and "DIV2K" in line for line in result.out.splitlines())
    assert "139,104" in result.out and "adamw (26 tensors)" in result.out
    assert not list(tmp_path.iterdir())


def test_dry_run_shows_every_setting(esrjax, image_dir):
    """Those of which a reader could take the default for granted, and shares of the datasets."""
    settings = {
        "data.datasets": f"{{'{image_dir}'=3,'{image_dir}[:2]'=1}}",
        "data.hr_patch_sizes": "[[32, 32]]",
        "data.batch_size": "3",
        "optimizer.b2": "0.95",
        "optimizer.weight_decay": "0.01",
        "schedule": "{name='multistep',milestones=[500,900]}",
        "grad_accum_steps": "3",
        "precision": "bf16",
        "freeze": "['block_1.*']",
        "ema_warmup": "true",
    }
    overrides = [f"stage.0.{path}={value}" for path, value in settings.items()]
    args = [item for override in overrides for item in ("--set", override)]
    result = esrjax("train", "quick", "--dry-run", *args)
    assert result.code == 0, result.err
    for text in (
        f"datasets {image_dir} 75.0%, {image_dir}[:2] 25.0%",
        "b1 0.9; b2 0.95; weight_decay 0.01",
        "schedule: name multistep; milestones 500, 900",
        "grad_accum_steps 3",
        "precision bf16",
        "freeze block_1.*",
        "ema 0.99; ema_warmup True",
        "augment hflip, rot90",
        "devices: 1 (0) cpu, jit; idle: 1 (1), as the number of devices divides data.batch_size",
    ):
        assert text in result.out, text
    stage = esrjax("train", "quick", "--dry-run", "--json", *args).json["stages"][0]
    assert stage["settings"]["freeze"] == ["block_1.*"] and stage["num_devices"] == 1


def test_dry_run_gives_equally_likely_images_their_share(esrjax, image_dir):
    data = f"datasets=['{image_dir}', '{image_dir}[:1]'],hr_patch_sizes=[[32, 32]],batch_size=2"
    result = esrjax("train", "quick", "--dry-run", "--set", f"stage.0.data={{{data}}}")
    assert f"datasets {image_dir} 80.0%, {image_dir}[:1] 20.0%" in result.out


def test_dry_run_says_how_much_of_the_initial_weights_is_left(esrjax):
    overrides = ["--set", "stage.0.ema=0.9999", "--set", "stage.0.steps=200"]
    plain = [*overrides, "--set", "stage.0.ema_warmup=false"]
    assert "98.0% of the initial weights" in esrjax("train", "quick", "--dry-run", *plain).out
    stage = esrjax("train", "quick", "--dry-run", "--json", *plain).json["stages"][0]
    assert stage["ema_initial_share"] == pytest.approx(0.9999**200)
    assert "of the initial weights" not in esrjax("train", "quick", "--dry-run", *overrides).out


def test_dry_run_names_the_datasets_that_the_challenge_forbids(esrjax):
    override = "stage.0.data.datasets=['DIV2K_valid_HR']"
    result = esrjax("train", "quick", "--dry-run", "--set", override)
    assert result.code == 0 and "not allowed: DIV2K_valid_HR" in result.out


def test_dry_run_lists_parameters_with_their_optimizer(esrjax):
    muon = "stage.0.optimizer={name='muadamw',learning_rate=1e-3,muon_learning_rate=1e-2}"
    stage = esrjax("train", "quick", "--dry-run", "--set", muon, "--json").json["stages"][0]
    weight = {"shape": [3, 3, 3, 32], "optimizer": "muon"}
    assert stage["params"]["block_1.c1.weight"] == weight
    assert stage["params"]["conv_near.weight"]["optimizer"] == "adamw"
    assert stage["num_trainable_params"] == 139_104 and stage["memory_mib"]["weights"] > 0
    lines = esrjax("train", "quick", "--dry-run", "--set", muon, "--list-params").out.splitlines()
    assert any(line.split()[1:] == ["block_1.c1.weight", "3x3x3x32", "muon"] for line in lines)


def test_recipes_are_listed_and_printed(esrjax):
    rows = {row.pop("name"): row for row in esrjax("recipes", "list", "--json").json}
    row = {"method": "spanv2", "stages": 2, "total_steps": 2_000_000, "package": "esrjax"}
    assert rows["spanv2"] == row
    assert "ntire2026" not in rows
    lines = esrjax("recipes", "list").out.splitlines()
    assert lines[0].split() == "name method stages total steps package".split()
    text = esrjax("recipes", "show", "quick").out
    assert tomllib.loads(text)["method"] == "spanv2"
    resolved = esrjax("recipes", "show", "quick", "--set", "seed=5", "--resolved").json
    assert resolved["seed"] == 5 and resolved["stage"][0]["optimizer"]["b2"] == 0.999
    schema = esrjax("recipes", "schema").json
    of_stage = schema["$defs"]["Stage"]["properties"]
    assert of_stage.pop("defaults")["type"] == "boolean"
    assert schema["properties"]["defaults"]["properties"] == of_stage


def test_demo_does_not_replace_a_run_of_another_kind(esrjax, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    result = esrjax("demo", "-o", tmp_path)
    assert result.code == 2 and "run' exists" in result.err
    assert (tmp_path / "run/notes.txt").read_text() == "mine"


def test_demo_runs_to_the_end(esrjax, tmp_path, monkeypatch):
    """Shortened: a few steps, one image in each split, of fewer pixels."""
    pytest.importorskip("skimage")
    crop = demo.resize.mod_crop
    monkeypatch.setattr(
        demo.resize, "mod_crop", lambda pixels, scale: crop(pixels[:192, :192], scale)
    )
    monkeypatch.setattr(demo, "TRAIN", ["chelsea"])
    monkeypatch.setattr(demo, "HELD_OUT", ["coffee"])
    monkeypatch.setattr(demo, "MIN_STEPS", 20)
    monkeypatch.setattr(demo.train, "measure_step_time", lambda recipe: 10.0)
    result = esrjax("demo", "-o", tmp_path, "--minutes", "0.05")
    assert result.code == 0, result.err
    assert all(f"[{step}/6]" in result.out for step in range(1, 7))
    assert "bicubic" in result.out and "trained here" in result.out
    panel = image_io.read_image(tmp_path / "coffee.png").pixels
    assert panel.shape[1] == 3 * 2 * demo.CROP_SIZE + 2 * 6
    ranking = (tmp_path / "ranking.md").read_text()
    assert "trained here" in ranking and "XiaomiMM" in ranking
    assert (tmp_path / "run" / "deploy.safetensors").exists()
    assert "20 steps, about 3 min" in result.out  # more than the 3 seconds asked for
    assert "no better than bicubic on coffee" in result.out  # after 20 steps
    assert "trained here" in (tmp_path / "report.html").read_text()
    assert f"--checkpoint {tmp_path / 'run'}" in result.out
