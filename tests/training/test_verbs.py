"""`train`, `plan` and `demo` on the command line."""

import json

import numpy as np
import pytest

from esrjax.cli import demo
from esrjax.pictures import files


@pytest.fixture
def config(tmp_path, said):
    """The small recipe as a file, its first stage alone."""
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(said | {"stage": said["stage"][:1]}))
    return file


def test_a_run_is_a_checkpoint_to_every_other_verb(esrjax, tmp_path, config, pictures):
    run = tmp_path / "run"
    trained = esrjax("train", config, "-o", run, "--set", "stage.0.steps=6")
    assert trained.code == 0 and "6/6" in trained.out and "data wait" in trained.out
    scored = esrjax("eval", "spanv2", "--checkpoint", run, "--data", pictures, "--json").json
    assert set(scored["images"]) == {"0", "1", "2", "3"} and np.isfinite(scored["mean"]["psnr"])
    assert esrjax("convert", "spanv2", run, "-o", tmp_path / "net.pth", "--to", "torch").code == 0
    big = tmp_path / "big.png"
    small = pictures / "0.png"
    assert esrjax("upscale", small, "-o", big, "--checkpoint", run).code == 0
    assert files.read(big).pixels.shape == (192, 256, 3)


def test_resume_needs_nothing_but_the_folder(esrjax, tmp_path, config):
    run = tmp_path / "run"
    assert esrjax("train", config, "-o", run).code == 0
    before = (run / "deploy.safetensors").read_bytes()
    assert esrjax("train", "-o", run, "--resume").code == 0
    assert (run / "deploy.safetensors").read_bytes() == before
    told = esrjax("train", "-o", run, "--resume", "--set", "stage.0.optimiser.lr=0.5")
    assert told.code == 2 and "stage.0.optimiser.lr is 0.001 there and 0.5 here" in told.err
    told = esrjax("train", "-o", run, "--resume", "--set", "stage.0.save_every=3")
    assert told.code == 0 and '"save_every": 3' in (run / "recipe.json").read_text()
    assert (run / "deploy.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["train", "quick"], ["-o is missing", "esrjax train quick -o runs/quick"]),
        (["train", "-o", "run"], ["CONFIG is missing", "with --resume the recipe is read"]),
        (["train", "-o", "run", "--resume"], ["CONFIG is missing"]),
        (["train", "quik", "-o", "run"], ["no recipe 'quik'", "quick, ", "spanv2"]),
        (
            ["train", "quick", "-o", "run", "--set", "stage.0.optimizer.lr=1", "--set", "seed=x"],
            ["2 mistakes", "did you mean 'optimiser'?", "seed should be a valid integer"],
        ),
        (
            ["train", "quick", "-o", "run", "--set", "stage.0.data.sets=['DIV9K']"],
            ["no set or folder 'DIV9K'", "ESRJAX_DATA"],
        ),
        (
            ["train", "quick", "-o", "run", "--set", "sizes.chanels=8"],
            ["no such size: chanels", "channels=32"],
        ),
    ],
)
def test_mistakes_are_told_and_nothing_is_left(esrjax, tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    told = esrjax(*words)
    assert told.code == 2 and told.err.startswith("esrjax: ") and "remedy" in told.err
    assert all(part in told.err for part in parts), told.err
    assert not (tmp_path / "run").exists()


def test_plan_says_stages_and_missing_sets(esrjax, monkeypatch, tmp_path):
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    told = esrjax("plan", "spanv2")
    assert told.code == 0 and "2,000,000 steps" in told.out
    assert "1 l1 + 0.05 fft" in told.out and "5 mse + 3 gradient" in told.out
    assert "missing: set DIV2K: there is no set" in told.out
    assert "139,104" in told.out and "adamw (26 tensors)" in told.out
    assert "nothing was started" in told.out and not list(tmp_path.iterdir())


def test_plan_names_the_sets_that_the_contest_forbids(esrjax):
    told = esrjax("plan", "quick", "--set", "stage.0.data.sets=['DIV2K_valid_HR']")
    assert told.code == 0 and "not fair: DIV2K_valid_HR" in told.out


def test_plan_says_which_rule_moves_which_weight(esrjax):
    muon = "stage.0.optimiser={name='muadamw',lr=1e-3,muon_lr=1e-2}"
    told = esrjax("plan", "quick", "--set", muon, "--json").json
    leaves = told["runs"][0]["leaves"]
    assert leaves["block_1.c1.weight"] == {"shape": [3, 3, 3, 32], "rule": "muon"}
    assert leaves["conv_near.weight"]["rule"] == "adamw"
    assert told["runs"][0]["trained"] == 139_104 and told["runs"][0]["memory_mib"]["weights"] > 0


def test_plan_prints_the_resolved_recipe_and_the_schema(esrjax):
    resolved = esrjax("plan", "quick", "--set", "seed=5", "--resolved").json
    assert resolved["seed"] == 5 and resolved["stage"][0]["optimiser"]["b2"] == 0.999
    assert "optimiser" in esrjax("plan", "quick", "--schema").out


def test_the_demo_runs_whole(esrjax, tmp_path, monkeypatch):
    """Shortened: a few steps, one picture on either side."""
    pytest.importorskip("skimage")
    monkeypatch.setattr(demo, "TRAIN", ["chelsea"])
    monkeypatch.setattr(demo, "HELD_OUT", ["coffee"])
    monkeypatch.setattr(demo.loop, "seconds_per_step", lambda recipe: 10.0)
    told = esrjax("demo", "-o", tmp_path, "--minutes", "0.05")
    assert told.code == 0, told.err
    assert all(f"[{step}/6]" in told.out for step in range(1, 7))
    assert "bicubic" in told.out and "trained here" in told.out
    panel = files.read(tmp_path / "coffee.png").pixels
    assert panel.shape[1] == 3 * 2 * demo.WINDOW + 2 * 6
    ranking = (tmp_path / "ranking.md").read_text()
    assert "trained here" in ranking and "XiaomiMM" in ranking
    assert (tmp_path / "run" / "deploy.safetensors").exists()
