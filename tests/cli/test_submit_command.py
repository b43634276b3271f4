"""The commands `submit build` and `submit check`."""

import json
import re
import zipfile

import numpy as np
import pytest
from optional import torch

from esrjax import registry
from esrjax.challenge import evaluate, results, rules
from esrjax.data.image_io import write_image
from esrjax.nn import checkpoint_io
from esrjax.nn.reparam import deploy
from esrjax.nn.state_dict import KeyMap, to_state_dict
from esrjax.training import recipe, recipe_loader

RECIPE = {
    "method": "spanv2",
    "seed": 3,
    "hparams": {"channels": 4},
    "stage": [
        {
            "name": "first",
            "init_from": "scratch",
            "steps": 12,
            "data": {
                "datasets": ["DIV2K", "LSDIR[:10]"],
                "hr_patch_sizes": [[16, 24]],
                "batch_size": 2,
            },
            "loss": {"l1": 1.0, "fft": 0.05},
            "optimizer": {"name": "adam", "learning_rate": 1e-3},
        }
    ],
}
LINE = re.compile(
    r"^(valid|test|training data|state dict|SR images|factsheet|result|written) +(.*)$",
    re.MULTILINE,
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run of a SPANV2 of four channels."""
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    method = registry.get_method("spanv2")
    metadata = checkpoint_io.make_metadata("spanv2", method, "deploy", {"channels": 4})
    state_dict = to_state_dict(deploy(method.build(channels=4)), KeyMap(method.torch_names))
    checkpoint_io.write_safetensors(tmp_path / "run/deploy.safetensors", state_dict, metadata)
    (tmp_path / "run/recipe.json").write_text(recipe.to_json(recipe_loader.parse(RECIPE)))
    return tmp_path / "run"


@pytest.fixture
def submit(esrjax, tmp_path, run):
    """`submit COMMAND` with the run's weights and two datasets of two small images."""
    for split in ("valid", "test"):
        for name in "ab":
            noise = np.random.default_rng(ord(name)).integers(0, 256, (40, 32, 3), np.uint8)
            write_image(tmp_path / split / f"{name}.png", noise)
    options = ["--valid", tmp_path / "valid", "--test", tmp_path / "test", "--checkpoint", run]
    return lambda command, *args: esrjax("submit", command, *options, *args)


@pytest.fixture
def make_rules(tmp_path):
    """Writes rules with the given PSNR thresholds, for datasets of two images."""

    def write(valid: float, test: float):
        text = (rules.resources.files("esrjax_configs") / "ntire2026.toml").read_text("utf-8")
        for old, new in (
            ("valid = 26.90", f"valid = {valid}"),
            ("test = 26.99", f"test = {test}"),
            ("num_images = 200", "num_images = 2"),
        ):
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "rules.toml").write_text(text)
        return tmp_path / "rules.toml"

    return write


def test_submission_has_weights_factsheet_and_results(submit, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "baseline_name", lambda rules: None)  # timing it is slow
    result = submit("build", "-o", tmp_path / "out", "--id", 77)
    assert result.code == 0, result.err
    files = {path.name for path in (tmp_path / "out").iterdir()}
    texts = {"factsheet.md", "factsheet.tex", "results.json"}
    assert files == {"team77_spanv2.pth", "test_sr.zip", *texts}
    assert dict(LINE.findall(result.out))["written"] == str(tmp_path / "out")
    (row,) = results.read_rows(tmp_path / "out/results.json", rules.load_rules("ntire2026"))
    entry = json.loads((tmp_path / "out/results.json").read_text())["77_spanv2"]
    assert (row.method, row.params_m) == ("spanv2", entry["num_parameters"])
    assert [len(entry[f"{split}_psnr"]) for split in ("valid", "test")] == [2, 2]
    assert entry["valid_memory"] > 0 and entry["num_conv"] == 22
    state_dict = torch.load(tmp_path / "out/team77_spanv2.pth", weights_only=True)
    assert sum(tensor.numel() for tensor in state_dict.values()) == 1e6 * entry["num_parameters"]
    sheet = (tmp_path / "out/factsheet.md").read_text()
    assert "trained on DIV2K, LSDIR[:10]" in sheet and "1 l1 + 0.05 fft" in sheet
    assert "| optimizer.learning_rate | 0.001 |" in sheet and "TO BE FILLED: name" in sheet
    assert f"| PSNR, valid | {row.psnr_valid:.4f} dB |" in sheet


def test_psnr_of_test_images_without_hr_is_unknown(submit, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "baseline_name", lambda rules: None)  # timing it is slow
    (tmp_path / "test").rename(tmp_path / "test_LR")
    (tmp_path / "test").mkdir()
    (tmp_path / "test_LR").rename(tmp_path / "test/test_LR")
    report = submit("check", "--json").json
    assert report["undetermined"] == ["PSNR on valid", "PSNR on test"] and not report["failures"]
    assert report["lr_sources"] == {
        "valid": "bicubic from HR",
        "test": f"read from {tmp_path / 'test/test_LR'}",
    }
    unknown = "PSNR unknown, LR only: the organisers compute it from the SR images"
    assert report["unknown_psnr"] == {"test": f"{unknown}; 2 images instead of 200"}
    result = submit("build", "-o", tmp_path / "out", "--runs", 2, "--zip", "both")
    assert "test: 2 images, LR only, no PSNR: read from" in result.err
    lines = dict(LINE.findall(result.out))
    assert lines["test"].startswith(unknown)
    assert lines["result"] == "no failures; undetermined: PSNR on valid, PSNR on test"
    entry = json.loads((tmp_path / "out/results.json").read_text())["22_spanv2"]
    assert (entry["test_ave_psnr"], len(entry["test_runtime"])) == (None, 2)
    sheet = (tmp_path / "out/factsheet.md").read_text()
    assert "| PSNR, test | unknown | LR only" in sheet and "mean of 2 runs of one process" in sheet
    for split in ("valid", "test"):
        with zipfile.ZipFile(tmp_path / f"out/{split}_sr.zip") as archive:
            assert archive.namelist() == ["ax4.png", "bx4.png", "readme.txt"]
            readme = archive.read("readme.txt").decode()
        assert f": {entry[f'{split}_ave_runtime'] / 1000:.6f}\nCPU[1] / GPU[0] : 1\n" in readme
        assert "No Extra Data [0] : 0\n" in readme
    assert submit("check", "--upload", tmp_path / "out/test_sr.zip").code == 0
    result = submit("check", "--upload", tmp_path / "valid")
    assert result.code == 2 and "ax4.png is missing" in result.err


def test_validation_images_without_hr_are_refused(submit, tmp_path):
    (tmp_path / "valid").rename(tmp_path / "valid_LR")
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid_LR").rename(tmp_path / "valid/valid_LR")
    result = submit("build", "-o", tmp_path / "out")
    assert result.code == 2 and "no HR images of valid" in result.err
    assert not (tmp_path / "out").exists()


def test_check_shows_margins_and_writes_nothing(submit, make_rules, tmp_path):
    report = submit("check", "--json").json
    first, second = (check["psnr"] for check in report["threshold_checks"])
    assert report["undetermined"] == ["PSNR on valid", "PSNR on test"]
    assert not report["failures"]
    before = sorted(tmp_path.rglob("*"))
    above = round(first, 2) if round(first, 2) > first else first + 0.004
    result = submit("check", "--rules", make_rules(above, round(second, 2) + 0.01))
    lines = dict(LINE.findall(result.out))
    assert result.code == 1
    assert "-10 mdB" in lines["test"] and lines["test"].endswith("; fails")
    assert lines["result"] == "rejected for PSNR on test"
    assert lines["training data"] == "trained on DIV2K, LSDIR[:10]"
    assert set(tmp_path.rglob("*")) - set(before) == {tmp_path / "rules.toml"}


def test_training_data_is_checked(submit, make_rules, run, tmp_path):
    rules = make_rules(5.0, 5.0)
    assert submit("check", "--rules", rules).code == 0
    forbidden = json.loads(json.dumps(RECIPE).replace("DIV2K", "DIV2K_valid_HR"))
    forbidden["stage"][0]["init_from"] = "other.pth"
    (tmp_path / "forbidden.json").write_text(json.dumps(forbidden))
    result = submit("check", "--rules", rules, "--recipe", tmp_path / "forbidden.json")
    lines = dict(LINE.findall(result.out))
    assert (result.code, lines["result"]) == (1, "rejected for data policy")
    assert "not allowed: DIV2K_valid_HR: " in lines["training data"]
    assert "other.pth" in lines["training data"]
    (run / "recipe.json").unlink()
    result = submit("check", "--rules", rules)
    assert result.code == 0
    assert dict(LINE.findall(result.out))["result"] == "no failures; undetermined: data policy"


def test_state_dict_that_differs_from_the_published_one_is_rejected(
    submit, run, tmp_path, monkeypatch
):
    """Weights with the published hyperparameters, but other keys than the published file."""
    published = {"conv.weight": np.zeros((1, 1, 1, 1), np.float32)}
    checkpoint_io.write_torch(tmp_path / "reference/weights/theirs.pth", published)
    sha256 = checkpoint_io.read_checkpoint(tmp_path / "reference/weights/theirs.pth").sha256
    method = registry.get_method("spanv2")
    other = next(iter(method.weights.values()))
    weights = {"theirs": type(other)(sha256=sha256, hparams={"channels": 4})}
    monkeypatch.setitem(method.__dict__, "weights", weights)
    monkeypatch.setenv("ESRJAX_REFERENCE", str(tmp_path / "reference"))
    result = submit("check")
    lines = dict(LINE.findall(result.out))
    assert result.code == 1 and lines["result"].startswith("rejected for state dict")
    assert "theirs.pth: " in lines["state dict"] and "conv.weight" in lines["state dict"]
    result = submit("build", "-o", tmp_path / "out")
    assert result.code == 2 and "theirs.pth: " in result.err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
