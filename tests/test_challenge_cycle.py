"""The challenge from a new method to a ranking page: in this process, and as a stranger would."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from esrjax.challenge import evaluate
from esrjax.data.image_io import read_image, write_image
from esrjax.data.resize import bicubic_downscale, bicubic_upscale

ROOT = Path(__file__).resolve().parents[1]
SOURCES = "esrjax plugins kernels configs pyproject.toml README.md LICENSE".split()
PAGE = (ROOT / "docs/challenge.md").read_text()
CYCLE = PAGE[PAGE.index("## From a method to a rank") : PAGE.index("## Submission")]
NUM_IMAGES = 2
RECIPE = """
method = "my_net"
seed = 1
[[stage]]
name = "only"
init_from = "scratch"
steps = 4
loss = { l1 = 1.0 }
optimizer = { name = "adam", learning_rate = 1e-3 }
data = { datasets = ["T91"], hr_patch_sizes = [[32, 32]], batch_size = 2 }
"""


def write_rules(path: Path) -> None:
    """Rules for splits of two images, with thresholds that any network reaches."""
    text = (ROOT / "configs/ntire2026.toml").read_text()
    for name, old, new in (
        ("valid", "26.90", "5.0"),
        ("test", "26.99", "5.0"),
        ("num_images", "200", str(NUM_IMAGES)),
    ):
        assert f"{name} = {old}" in text
        text = text.replace(f"{name} = {old}", f"{name} = {new}")
    path.write_text(text)


def write_datasets(folder: Path, height: int = 48) -> None:
    """Smooth images to train on, valid with HR, and test as HR apart from LR."""
    rng = np.random.default_rng(0)
    first = {"T91": 1, "BSD200": 1, "DIV2K_LSDIR_valid_HR": 801, "DIV2K_LSDIR_test_HR": 901}
    for dataset, number in first.items():
        for i in range(NUM_IMAGES):
            coarse = rng.integers(0, 256, (height // 4, height // 4 + 2 * i, 3), np.uint8)
            hr, name = bicubic_upscale(coarse), f"{number + i:04}"
            write_image(folder / f"{dataset}/{name}.png", hr)
            if dataset == "DIV2K_LSDIR_test_HR":
                lr = bicubic_downscale(hr)
                write_image(folder / f"DIV2K_LSDIR_test_LR/{name}x4.png", lr)


def test_cycle_from_a_new_method_to_the_page(esrjax, package, tmp_path, monkeypatch):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "baseline_name", lambda rules: None)  # timing it is slow
    write_datasets(tmp_path / "data")
    write_rules(tmp_path / "rules.toml")
    (tmp_path / "recipe.toml").write_text(RECIPE)

    # The participant.
    assert esrjax("method", "new", "my_net").code == 0
    source = (tmp_path / "my_net/esrjax_my_net/__init__.py").read_text()
    package("my_net", source, "esrjax.methods", {"my_net": "METHOD"})
    with jax.numpy_dtype_promotion("standard"):  # that of optax
        assert esrjax("train", "recipe.toml", "-o", "run").code == 0
    options = "my_net --checkpoint run --id 77 --rules rules.toml --valid DIV2K_LSDIR_valid_HR"
    options = [*options.split(), "--test", "DIV2K_LSDIR_test_LR"]
    built = esrjax("submit", "build", *options, "--runs", 2, "-o", "Alpha")
    assert "test: 2 images, LR only, no PSNR: " in built.err
    assert "no failures; undetermined: PSNR on test\n" in built.out
    sheet = (tmp_path / "Alpha/factsheet.md").read_text()
    count = int(re.search(r"factsheet +(\d+) blanks to be filled: Team: name of", built.out)[1])
    assert count == sheet.count("TO BE FILLED: ") + 1  # one in readme.txt
    checked = esrjax("submit", "check", *options, "--upload", "Alpha/test_sr.zip")
    assert checked.code == 0 and "SR images      Alpha/test_sr.zip: complete" in checked.out
    ranked = esrjax(
        "rank", "Alpha/results.json", "--rules", "rules.toml", "--baseline", "published"
    )
    assert "unknown" in ranked.out and "PSNR on test is unknown of my_net, my_net" in ranked.out

    # The organisers: Beta uploads a folder of other images; the baseline is Alpha's, twice as slow.
    entry = json.loads((tmp_path / "Alpha/results.json").read_text())["77_my_net"]
    (tmp_path / "Beta").mkdir()
    (tmp_path / "Beta/results.json").write_text(json.dumps({"78_cubic": entry}))
    for lr in (tmp_path / "data/DIV2K_LSDIR_test_LR").iterdir():
        hr = tmp_path / "data/DIV2K_LSDIR_test_HR" / lr.name.replace("x4", "")
        noisy = np.maximum(read_image(hr).pixels, 8) - 8
        write_image(tmp_path / "Beta/sr" / lr.name, noisy)
    slow = {f"{s}_runtime": [2 * t for t in entry[f"{s}_runtime"]] for s in ("valid", "test")}
    slow |= {f"{s}_ave_runtime": 2 * entry[f"{s}_ave_runtime"] for s in ("valid", "test")}
    (tmp_path / "SPAN.json").write_text(json.dumps({"00_SPAN": {**entry, **slow}}))
    hr = ["--data", "DIV2K_LSDIR_test_HR", "--rules", "rules.toml"]
    uploads = {"Alpha": ("Alpha/test_sr.zip", "Alpha"), "Beta": ("Beta/sr", "Beta/results.json")}
    uploads["SPAN"] = ("Beta/sr", "SPAN.json")
    for team, (upload, file) in uploads.items():
        args = [upload, "--entry", file, *hr, "-o", f"entries/{team}.json"]
        result = esrjax("submit", "score", *args)
        assert result.code == 0, result.err
    (tmp_path / "Beta/sr/0901x4.png").rename(tmp_path / "Beta/sr/x.png")
    refused = esrjax("submit", "score", "Beta/sr", "--entry", "Beta", *hr, "-o", "entries/B.json")
    assert refused.code == 2 and not (tmp_path / "entries/B.json").exists()
    assert "0901x4.png is missing" in refused.err and "x.png is not expected" in refused.err
    merged = esrjax("submit", "merge", "entries", "-o", "results.json", "--rules", "rules.toml")
    assert "3 entries" in merged.out and re.search(r"77_my_net +\| Alpha ", merged.out)
    tables = []
    for source in ("entries", "results.json"):
        rows = esrjax("rank", source, "--rules", "rules.toml", "--json").json["rows"]
        tables.append([{**row, "measured_by": ""} for row in rows])
        assert {row["team"]: row["rank_main"] for row in rows} == {
            "Alpha": 1,
            "Beta": 1,  # the same figures
            "EfficientSR Organizers": None,
        }
    assert tables[0] == tables[1]
    assert rows[1]["psnr_test"] == pytest.approx(30.1, abs=0.3)  # 8 levels off, but for dark pixels
    ranked = esrjax("rank", "entries", "--rules", "rules.toml").out
    assert "Runtimes were measured by several parties: Alpha; Beta; " in ranked
    assert esrjax("report", "entries", "--rules", "rules.toml", "-o", "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "computed from the SR images in test_sr.zip (sha256 " in page
    assert "reported by Beta" in page and "measured by Beta" in page


# --- as a stranger -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """Runs shell commands in a new environment that has the wheel and PyTorch."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "source").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    subprocess.run([*build, folder / "source"], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    install = [folder / "venv/bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    result = subprocess.run([*install, f"{wheel}[torch]"], capture_output=True, text=True)
    if "No matching distribution" in result.stderr:
        pytest.skip("no package index")
    assert result.returncode == 0, result.stderr
    (folder / "work").mkdir()
    hidden = ("PYTHONPATH", "ESRJAX_REFERENCE", "XLA_FLAGS")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    env["PATH"] = f"{folder / 'venv/bin'}:{env['PATH']}"
    env["ESRJAX_DATA"] = str(folder / "data")

    def run(commands: str, cwd: Path = folder / "work"):
        return subprocess.run(
            ["sh", "-e", "-c", commands], cwd=cwd, env=env, capture_output=True, text=True
        )

    run.folder = folder
    return run


@pytest.mark.slow
def test_stranger_goes_from_the_wheel_to_a_ranking_page(stranger):
    folder = stranger.folder
    write_datasets(folder / "data", height=128)
    write_rules(folder / "work/rules.toml")
    participant, organiser = re.findall(r"^```sh\n(.*?)^```$", CYCLE, re.MULTILINE | re.DOTALL)
    few = "--set method=my_net --set stage.0.steps=200 --set stage.0.data.hr_patch_sizes=[[64,64]]"
    participant = participant.replace("--set method=my_net", few)
    participant = re.sub(r"(esrjax submit \w+)", r"\1 --rules rules.toml", participant)
    organiser = re.sub(r"(esrjax (submit \w+|rank|report))", r"\1 --rules rules.toml", organiser)
    hidden = folder / "data/DIV2K_LSDIR_test_HR"
    hidden.rename(folder / "hidden")
    result = stranger(participant)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("undetermined: PSNR on test\n") == 3
    assert "test: 2 images, LR only, no PSNR" in result.stderr
    with zipfile.ZipFile(folder / "work/Alpha/test_sr.zip") as archive:
        assert archive.namelist() == ["0901x4.png", "0902x4.png", "readme.txt"]
    (folder / "hidden").rename(hidden)
    result = stranger(organiser)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\| +1 \| Alpha +\| my_net ", result.stdout)
    assert "PSNR on test is unknown" not in result.stdout
    assert "<html" in (folder / "work/ranking.html").read_text()
