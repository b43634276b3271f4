"""User journeys through the command line: from a checkpoint to an image, and to a rank."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esrjax import load
from esrjax.data.image_io import read_image

pytestmark = pytest.mark.platform_lowering

COMMAND = Path(sys.executable).parent / "esrjax"


def run(*args, cwd):
    """Run the command in a process of its own, as users do."""
    return subprocess.run(
        [COMMAND, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def test_convert_and_compare_with_pytorch(esrjax, reference, tmp_path):
    official = reference / "weights/team22_spanv2_c2.pth"
    converted = tmp_path / "spanv2.safetensors"
    assert esrjax("weights", "convert", "spanv2", official, "-o", converted).code == 0
    golden = ["--golden", reference / "golden/spanv2.npz"]
    for implementation in ("auto", "reference"):
        options = ["--checkpoint", converted, *golden, "--implementation", implementation]
        result = esrjax("parity", "spanv2", *options)
        assert result.code == 0 and result.out.endswith("spanv2: equal to PyTorch\n")
    cost = esrjax("method", "cost", "spanv2", "--checkpoint", converted, "--json").json
    assert (cost["params"], cost["macs"], cost["convs"]) == (139_104, 9_107_931_136, 22)


def test_evaluate_and_rank(esrjax, reference, tmp_path):
    weights, results = reference / "weights", tmp_path / "results"
    options = ["--checkpoint", f"span={weights}/team00_SPAN.pth"]
    options += ["--checkpoint", f"spanv2={weights}/team22_spanv2_c2.pth"]
    options += ["--data", "Set5", "-o", results, "--json"]
    span, spanv2 = esrjax("eval", "span", "spanv2", *options).json
    assert span["mean"]["psnr"] == pytest.approx(29.854686, abs=1e-3)
    assert spanv2["images"]["baby"]["ssim"] == pytest.approx(0.8662, abs=1e-4)
    first, second = esrjax("rank", results, "--json").json["rows"]
    assert (first["method"], first["ranked"], first["rank_main"]) == ("spanv2", False, None)
    assert (second["method"], second["status"]) == ("span", "baseline")
    assert first["status"] != second["status"]
    assert second["score_main"] == pytest.approx(7.389056)
    assert first["score_params"] == pytest.approx(np.exp(2 * 139_104 / 150_688))
    table = esrjax("rank", results).out
    assert "| Rank |" not in table and "PSNR Set5 (5)" in table
    row = esrjax("rank", results, "--ignore-thresholds", "--json").json["rows"][0]
    assert (row["method"], row["rank_main"], row["ranked"]) == ("spanv2", 1, True)


def test_upscale_images(reference, tmp_path):
    pytest.importorskip("torch", reason="the official weights are PyTorch's")
    images = reference / "data/Set5/LR_bicubic_X4"
    weights = reference / "weights/team22_spanv2_c2.pth"
    options = ["-o", "large", "--checkpoint", weights, "--tile", 64]
    result = run("upscale", images, *options, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.removesuffix("on cpu)\n") in (
        "5 images written to large (JAX ",
        "5 images written to large (OpenVINO ",
    )
    net = load("spanv2", weights)
    for name in ("butterfly", "woman"):  # one is a single tile, one is several
        lr = read_image(images / f"{name}x4.png")
        sr = read_image(tmp_path / f"large/{name}x4x4.png")
        untiled = net(lr.pixels)
        assert sr.pixels.shape == untiled.shape
        assert np.abs(sr.pixels.astype(int) - untiled).max() <= 1
        assert np.mean(sr.pixels != untiled) < 1e-4


def test_user_error_has_exit_code_2_and_no_traceback(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    result = run("upscale", "a.png", "--method", "spam", "-o", "b.png", cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("esrjax: ") and "Traceback" not in result.stderr
    assert "'spam'" in result.stderr.splitlines()[0] and "'span'" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png"]


def test_new_package_can_be_installed_and_passes_its_test(
    esrjax, pip_install, monkeypatch, tmp_path
):
    result = esrjax("method", "new", "my_net", "-o", tmp_path / "mine")
    assert result.code == 0 and result.out.splitlines()[:6] == [
        str(tmp_path / "mine" / name)
        for name in (
            "pyproject.toml",
            "README.md",
            "esrjax_my_net/my_net_small.toml",
            ".github/workflows/test.yml",
            "esrjax_my_net/__init__.py",
            "tests/test_my_net.py",
        )
    ]
    site = pip_install(tmp_path / "mine")
    monkeypatch.setenv("PYTHONPATH", str(site))
    command = [sys.executable, "-m", "pytest", "-q", tmp_path / "mine/tests"]
    tests = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert tests.returncode == 0, tests.stdout
    assert "my_net_small" in run("recipes", "list", cwd=tmp_path).stdout
    shown = run("method", "show", "my_net", cwd=tmp_path)
    assert " (x2, x3, x4, my team; from esrjax-my" in shown.stdout
