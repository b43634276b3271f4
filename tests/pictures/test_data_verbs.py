"""`esrjax data`: packed, verified, scored and trained on under one name."""

import json

import numpy as np
import pytest

from esrjax.pictures.files import write
from esrjax.pictures.resize import downscale


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    for seed, name in enumerate("ab"):
        hr = np.random.default_rng(seed).integers(0, 256, (64, 48, 3), np.uint8)
        write(tmp_path / f"Photos/HR/{name}.png", hr)
        write(tmp_path / f"Photos/LR_bicubic_X4/{name}x4.png", downscale(hr))
    return tmp_path / "Photos"


def test_a_packed_set_goes_wherever_a_set_goes(esrjax, crumbs, photos, tmp_path):
    words = ["data", "pack", "Photos", "--name", "mine", "--side", 32, "--step", 16, "--json"]
    made = esrjax(*words).json
    assert (made["set"], made["pictures"], made["pieces"]) == ("tfds:mine", 2, 2 * 3 * 2)
    assert json.loads((tmp_path / "mine/1.0.0/metadata.json").read_text())["pictures"][0][0] == "a"
    verdict = esrjax("data", "verify", "tfds:mine", "--json").json
    assert verdict["right"] and verdict["off"] == 0 and verdict["smallest"] == [32, 32]
    scored = esrjax("eval", "crumb", "--data", "tfds:mine[:4]", "--json").json
    assert list(scored["images"]) == ["a_000", "a_001", "a_002", "a_003"]
    changes = ["stage.0.data.sets=['tfds:mine']", "stage.0.data.patches=[[32, 32]]"]
    plan = esrjax("plan", "quick", *(word for change in changes for word in ("--set", change)))
    assert plan.code == 0 and "set tfds:mine: 12 pictures" in plan.out


def test_what_is_wrong_with_a_set_is_said_and_is_exit_code_1(esrjax, photos):
    right = esrjax("data", "verify", "Photos", "--against", photos / "HR")
    assert right.code == 1 and "wrong: a: the same picture as a" in right.out
    assert esrjax("data", "verify", "Photos").code == 0
    write(photos / "LR_bicubic_X4/ax4.png", np.zeros((16, 12, 3), np.uint8))
    said = esrjax("data", "verify", "Photos")
    assert said.code == 1 and "wrong: a: LR is up to" in said.out
    assert not esrjax("data", "verify", "Photos", "--json").json["right"]
