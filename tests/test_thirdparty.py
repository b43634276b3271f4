"""A package of strangers, installed by pip: every verb knows it, and its own test passes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from esrjax import registry
from esrjax.model import open_method
from esrjax.pictures.files import read, write
from esrjax.pictures.metrics import quantise

SOURCE = Path(__file__).parent / "thirdparty"
pytestmark = pytest.mark.usefixtures("crumbs")


@pytest.fixture
def pictures(tmp_path):
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (40, 36, 3), np.uint8)
        write(tmp_path / f"pictures/{name}.png", noise)
    return tmp_path / "pictures"


def test_its_own_test_passes(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        tmp_path,
    ]
    run = subprocess.run(
        [*command, SOURCE / "test_crumbs.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0 and "2 passed" in run.stdout, run.stdout + run.stderr


def test_it_is_known_to_a_new_process(tmp_path):
    run = subprocess.run(
        [Path(sys.executable).parent / "esrjax", "show", "crumb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("crumb  (x4, Bakery; from crumbs 0.3)\n")


def test_it_is_listed_and_shown(esrjax, monkeypatch):
    monkeypatch.setenv(registry.LIMIT, "span, crumb, loaf, crumbs")
    rows = {row["name"]: row for row in esrjax("list", "--json").json}
    assert set(rows) == {"crumb", "loaf", "crumbs", "span"}
    assert rows["crumbs"] == {
        "name": "crumbs",
        "team": "Bakery",
        "scale": 4,
        "params": 33,
        "macs": 8 * 27 * 256**2,
        "weights": [],
        "pretrained": True,
    }
    assert esrjax("show", "crumb", "--json").json["origin"] == "crumbs 0.3"
    card = esrjax("show", "crumbs").out
    assert "crumb              mean over the eight flips and turns, weight 3" in card
    assert "loaf               one pass, weight 1" in card


@pytest.mark.parametrize("name", ["crumb", "loaf"])
def test_it_keeps_the_laws(esrjax, name):
    said = esrjax("check", name)
    assert (said.code, said.out.splitlines()[-1]) == (0, f"{name}: 8 of 8 laws hold")
    verdicts = esrjax("check", name, "--json").json
    assert len(verdicts) == 8 and all(verdict["broken"] is None for verdict in verdicts)


def test_it_makes_pictures_larger(esrjax, pictures, tmp_path):
    words = ["upscale", pictures, "--tile", 16]
    for name in ("crumb", "loaf", "crumbs"):
        said = esrjax(*words, "--method", name, "-o", tmp_path / name)
        assert said.code == 0 and said.out.startswith(f"2 pictures in {tmp_path / name}, by ")
        assert read(tmp_path / name / "ax4.png").pixels.shape == (160, 144, 3)
    crumb, loaf = (open_method(name).upscaler() for name in ("crumb", "loaf"))
    lr = read(pictures / "b.png").pixels
    assert np.array_equal(read(tmp_path / "loaf/bx4.png").pixels, quantise(loaf(lr), 1.0))
    assert np.array_equal(read(tmp_path / "crumb/bx4.png").pixels, quantise(crumb(lr), 1.0))
    one = tmp_path / "one.webp"
    esrjax("upscale", pictures / "b.png", "--method", "crumb", "--self-ensemble", "-o", one)
    turned = open_method("crumb").upscaler(self_ensemble=True)(lr)
    assert np.array_equal(read(one).pixels, quantise(turned, 1.0))
    assert not np.array_equal(read(one).pixels, quantise(crumb(lr), 1.0))


def test_what_is_changed_in_reading_a_picture_is_said(esrjax, tmp_path):
    from PIL import Image

    Image.new("L", (9, 8), 77).save(tmp_path / "grey.png")
    said = esrjax("upscale", tmp_path / "grey.png", "--method", "crumb", "-o", tmp_path / "b.png")
    assert said.err == "grey.png: grey repeated in three channels\n"
    assert said.out.startswith(f"1 picture in {tmp_path}/b.png, by ")


def test_its_weights_are_converted(esrjax, crumbs, tmp_path):
    given = crumbs / "crumbs/crumb.safetensors"
    said = esrjax("convert", "crumb", given, "-o", tmp_path / "crumb.pth")
    assert said.out == f"{tmp_path}/crumb.pth: crumb, deploy form, 2 tensors, 30 parameters\n"
    again = ["convert", "crumb", tmp_path / "crumb.pth", "-o", tmp_path / "again.safetensors"]
    assert esrjax(*again).code == 0


def test_it_is_measured_and_ranked_beside_the_baseline(esrjax, reference, pictures, tmp_path):
    results, span = tmp_path / "results", reference / "weights/team00_SPAN.pth"
    words = ["eval", "crumb", "loaf", "span", "--data", pictures, "-o", results]
    assert esrjax(*words, "--checkpoint", f"span={span}").code == 0
    rows = {row["method"]: row for row in esrjax("rank", results, "--json").json["rows"]}
    assert [rows[name]["standing"] for name in ("crumb", "loaf", "span")] == [
        "unjudged",
        "unjudged",
        "baseline",
    ]
    assert all(rows[name]["rank_main"] is None and not rows[name]["ranked"] for name in rows)
    found = esrjax("rank", results, "--without-floors", "--json").json
    ranks = {row["method"]: row["rank_params"] for row in found["rows"]}
    assert ranks == {"loaf": 1, "crumb": 2, "span": None}
    assert found["floors"] is False
