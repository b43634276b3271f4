"""From weights to what a contest asks for, and what it would refuse."""

import json
import re

import numpy as np
import pytest
import torch

from esrjax import registry
from esrjax.contest import evaluate, results, rules
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.reparam import deploy
from esrjax.network.weights import tensors
from esrjax.pictures.files import write
from esrjax.training import recipe as recipes

RECIPE = {
    "method": "spanv2",
    "seed": 3,
    "sizes": {"channels": 4},
    "stage": [
        {
            "name": "first",
            "start": "new",
            "steps": 12,
            "data": {"sets": ["DIV2K", "LSDIR[:10]"], "patches": [[16, 24]], "batch": 2},
            "loss": {"l1": 1.0, "fft": 0.05},
            "optimiser": {"name": "adam", "lr": 1e-3},
        }
    ],
}
LINE = re.compile(r"^(valid|test|fairness|keys|verdict|written) +(.*)$", re.MULTILINE)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run of a SPANV2 of four channels."""
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    method = registry.plain("spanv2")
    said = archive.describe("spanv2", method, "deploy", {"channels": 4})
    held = tensors(deploy(method.build(channels=4)), Naming(method.torch_names))
    archive.write_safetensors(tmp_path / "run/deploy.safetensors", held, said)
    (tmp_path / "run/recipe.json").write_text(recipes.to_json(recipes.parse(RECIPE)))
    return tmp_path / "run"


@pytest.fixture
def submit(esrjax, tmp_path, run):
    """`submit` of the run's weights over two sets of two small pictures."""
    for split in ("valid", "test"):
        for name in "ab":
            noise = np.random.default_rng(ord(name)).integers(0, 256, (40, 32, 3), np.uint8)
            write(tmp_path / split / f"{name}.png", noise)
    sets = ["--valid", tmp_path / "valid", "--test", tmp_path / "test"]
    return lambda *words: esrjax("submit", "spanv2", "--checkpoint", run, *sets, *words)


@pytest.fixture
def contest(tmp_path):
    """Rules whose floors speak of sets of two pictures: one is passed by rounding, one missed."""

    def with_floors(valid: float, test: float):
        text = (rules.resources.files("esrjax_configs") / "ntire2026.toml").read_text("utf-8")
        for old, new in (
            ("valid = 26.90", f"valid = {valid}"),
            ("test = 26.99", f"test = {test}"),
            ("pictures = 200", "pictures = 2"),
        ):
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "contest.toml").write_text(text)
        return tmp_path / "contest.toml"

    return with_floors


def test_a_submission_is_weights_factsheet_and_results(submit, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "companion", lambda rules: None)  # the baseline takes its time
    said = submit("-o", tmp_path / "out", "--id", 77)
    assert said.code == 0, said.err
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"team77_spanv2.pth", "factsheet.md", "results.json"}
    assert dict(LINE.findall(said.out))["written"] == str(tmp_path / "out")
    (row,) = results.read(tmp_path / "out/results.json", rules.load("ntire2026"))
    held = json.loads((tmp_path / "out/results.json").read_text())["77_spanv2"]
    assert (row.method, row.params_m) == ("spanv2", held["num_parameters"])
    assert [len(held[f"{split}_psnr"]) for split in ("valid", "test")] == [2, 2]
    assert held["valid_memory"] > 0 and held["num_conv"] == 22
    net = torch.load(tmp_path / "out/team77_spanv2.pth", weights_only=True)
    assert sum(tensor.numel() for tensor in net.values()) == 1e6 * held["num_parameters"]
    sheet = (tmp_path / "out/factsheet.md").read_text()
    assert "trained on DIV2K, LSDIR[:10]" in sheet and "1 l1 + 0.05 fft" in sheet
    assert f"| PSNR, valid | {row.psnr_valid:.4f} dB |" in sheet


def test_the_check_says_every_margin_and_writes_nothing(submit, contest, tmp_path):
    found = submit("--check", "--json").json
    first, second = (gate["psnr"] for gate in found["gates"])
    assert found["open"] == ["PSNR on valid", "PSNR on test"] and not found["failures"]
    before = sorted(tmp_path.rglob("*"))
    above = round(first, 2) if round(first, 2) > first else first + 0.004
    said = submit("--check", "--rules", contest(above, round(second, 2) + 0.01))
    told = dict(LINE.findall(said.out))
    assert said.code == 1
    assert told["test"].endswith("; misses") and "-10 mdB as rounded" in told["test"]
    assert told["verdict"] == "refused for PSNR on test"
    assert told["fairness"] == "trained on DIV2K, LSDIR[:10]"
    assert set(tmp_path.rglob("*")) - set(before) == {tmp_path / "contest.toml"}


def test_what_it_was_trained_on_is_asked(submit, contest, run, tmp_path):
    floors = contest(5.0, 5.0)
    assert submit("--check", "--rules", floors).code == 0
    unfair = json.loads(json.dumps(RECIPE).replace("DIV2K", "DIV2K_valid_HR"))
    unfair["stage"][0]["start"] = "other.pth"
    (tmp_path / "unfair.json").write_text(json.dumps(unfair))
    said = submit("--check", "--rules", floors, "--recipe", tmp_path / "unfair.json")
    told = dict(LINE.findall(said.out))
    assert (said.code, told["verdict"]) == (1, "refused for fairness")
    assert "not fair: DIV2K_valid_HR: the LR pictures of DIV2K's validation" in told["fairness"]
    assert told["fairness"].endswith("also made with other.pth, whose training it does not say")
    (run / "recipe.json").unlink()
    said = submit("--check", "--rules", floors)
    assert said.code == 0
    assert dict(LINE.findall(said.out))["verdict"] == "nothing fails; open: fairness"


def test_keys_that_the_published_file_has_not_are_refused(submit, run, tmp_path, monkeypatch):
    """Weights of the published sizes, for which a file of other keys was published."""
    published = {"conv.weight": np.zeros((1, 1, 1, 1), np.float32)}
    archive.write_torch(tmp_path / "reference/weights/theirs.pth", published)
    sha256 = archive.read(tmp_path / "reference/weights/theirs.pth").sha256
    method = registry.plain("spanv2")
    other = next(iter(method.weights.values()))
    weights = {"theirs": type(other)(sha256=sha256, sizes={"channels": 4})}
    monkeypatch.setitem(method.__dict__, "weights", weights)
    monkeypatch.setenv("ESRJAX_REFERENCE", str(tmp_path / "reference"))
    said = submit("--check")
    told = dict(LINE.findall(said.out))
    assert said.code == 1 and told["verdict"].startswith("refused for keys")
    assert "not as in theirs.pth: " in told["keys"] and "conv.weight is missing" in told["keys"]
    said = submit("-o", tmp_path / "out")
    assert said.code == 2 and "loads keys, shapes and types strictly" in said.err
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
