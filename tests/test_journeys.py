"""The journeys of a user, from a checkpoint to a picture and to a rank, through the command."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esrjax import load
from esrjax.pictures.files import read

COMMAND = Path(sys.executable).parent / "esrjax"


def run(*words, cwd):
    """The command in a process of its own, as users run it."""
    return subprocess.run(
        [COMMAND, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_convert_and_check(esrjax, reference, tmp_path):
    official, ours = reference / "weights/team22_spanv2_c2.pth", tmp_path / "spanv2.safetensors"
    assert esrjax("convert", "spanv2", official, "-o", ours).code == 0
    for body in ("auto", "reference"):
        words = ["--checkpoint", ours, "--golden", reference / "golden/spanv2.npz", "--body", body]
        said = esrjax("parity", "spanv2", *words)
        assert said.code == 0 and said.out.endswith("spanv2: equal to PyTorch\n")
    cost = esrjax("cost", "spanv2", "--checkpoint", ours, "--json").json
    assert (cost["params"], cost["macs"], cost["convs"]) == (139_104, 9_107_931_136, 22)


def test_evaluate_and_rank(esrjax, reference, tmp_path):
    weights, results = reference / "weights", tmp_path / "results"
    words = ["--checkpoint", f"span={weights}/team00_SPAN.pth"]
    words += ["--checkpoint", f"spanv2={weights}/team22_spanv2_c2.pth"]
    said = esrjax("eval", "span", "spanv2", *words, "--data", "Set5", "-o", results, "--json")
    span, spanv2 = said.json
    assert span["mean"]["psnr"] == pytest.approx(29.854686, abs=1e-3)
    assert spanv2["images"]["baby"]["ssim"] == pytest.approx(0.8662, abs=1e-4)
    first, second = esrjax("rank", results, "--json").json["rows"]
    assert (first["method"], first["standing"], first["rank_main"]) == ("spanv2", "unjudged", None)
    assert (second["method"], second["standing"]) == ("span", "baseline")
    assert second["score_main"] == pytest.approx(7.389056)
    assert first["score_params"] == pytest.approx(np.exp(2 * 139_104 / 150_688))
    table = esrjax("rank", results).out
    assert "| Rank |" not in table and "PSNR Set5 (5)" in table
    alone = esrjax("rank", results, "--without-floors", "--json").json["rows"][0]
    assert (alone["method"], alone["rank_main"], alone["ranked"]) == ("spanv2", 1, True)


def test_upscale_pictures(reference, tmp_path):
    pictures = reference / "data/Set5/LR_bicubic_X4"
    weights = reference / "weights/team22_spanv2_c2.pth"
    done = run(
        "upscale", pictures, "-o", "large", "--checkpoint", weights, "--tile", 64, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "5 pictures in large, by JAX on cpu\n"
    net = load("spanv2", weights)
    for name in ("butterfly", "woman"):  # one fits into a tile, one does not
        lr, sr = read(pictures / f"{name}x4.png"), read(tmp_path / f"large/{name}x4x4.png")
        whole = net(lr.pixels)
        assert sr.pixels.shape == whole.shape
        assert np.abs(sr.pixels.astype(int) - whole).max() <= 1
        assert np.mean(sr.pixels != whole) < 1e-4


def test_a_mistake_ends_in_words_and_code_2(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    done = run("upscale", "a.png", "--method", "spam", "-o", "b.png", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("esrjax: no method is called 'spam'\n  rule:   ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_a_new_package_is_installed_known_and_passes_its_own_test(
    esrjax, installed, monkeypatch, tmp_path
):
    said = esrjax("new", "my_net", "-o", tmp_path / "mine")
    assert said.code == 0 and said.out.splitlines()[:3] == [
        str(tmp_path / "mine" / name)
        for name in ("pyproject.toml", "esrjax_my_net/__init__.py", "tests/test_my_net.py")
    ]
    site = installed(tmp_path / "mine")
    monkeypatch.setenv("PYTHONPATH", str(site))
    test = [sys.executable, "-m", "pytest", "-q", tmp_path / "mine/tests"]
    passed = subprocess.run(test, cwd=tmp_path, capture_output=True, text=True)
    assert passed.returncode == 0, passed.stdout
    assert " (x4, my team; from esrjax-my" in run("show", "my_net", cwd=tmp_path).stdout
