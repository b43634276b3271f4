"""`esrjax metrics`: every convention told, and one pair of pictures under all of them."""

import numpy as np
import pytest

from esrjax.pictures.files import read, write
from esrjax.pictures.metrics import psnr, ssim
from esrjax.pictures.resize import downscale, upscale
from esrjax.pictures.specs import SPECS


@pytest.fixture
def pair(tmp_path):
    """A picture and what bicubic makes of its LR."""
    coarse = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
    hr = upscale(coarse)
    write(tmp_path / "hr.png", hr)
    write(tmp_path / "sr.png", upscale(downscale(hr)))
    return tmp_path / "sr.png", tmp_path / "hr.png"


def test_every_spec_is_listed_with_what_it_does(esrjax):
    rows = esrjax("metrics", "list", "--json").json
    assert [(row["spec"], row["words"]) for row in rows] == [
        (spec.name, spec.words) for spec in SPECS.values()
    ]
    lines = esrjax("metrics", "list").out.splitlines()
    assert lines[1].startswith("ntire ") and lines[1].rstrip().endswith("; border 4")


def test_one_pair_under_every_spec(esrjax, pair):
    sr, hr = (read(path).pixels for path in pair)
    found = {row["spec"]: row for row in esrjax("metrics", "explain", *pair, "--json").json}
    assert list(found) == list(SPECS)
    for name, spec in SPECS.items():
        assert found[name]["psnr"] == psnr(sr, hr, spec)
        small = 2 * spec.border + spec.window > 40  # the picture is 40 pixels high
        assert found[name]["ssim"] == (None if small else ssim(sr, hr, spec))
    text = esrjax("metrics", "explain", *pair).out
    values = [row["psnr"] for row in found.values()]
    assert f"one pair of pictures, {max(values) - min(values):.2f} dB apart" in text
    assert "sr.png has 8 bits already" in text and "too small" not in text


def test_equal_pictures_are_infinitely_close(esrjax, pair):
    said = esrjax("metrics", "explain", pair[1], pair[1])
    assert said.out.splitlines()[1].split()[:3] == ["ntire", "inf", "1.00000"]
    assert "apart by convention" not in said.out
    assert esrjax("metrics", "explain", pair[1], pair[1], "--json").json[0]["psnr"] is None


def test_what_a_picture_lost_on_reading_is_said(esrjax, tmp_path):
    write(tmp_path / "grey.png", np.zeros((24, 24, 3), np.uint8))
    from PIL import Image

    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / "grey.png")
    said = esrjax("metrics", "explain", tmp_path / "grey.png", tmp_path / "grey.png")
    assert "grey.png: grey repeated in three channels" in said.err
    assert "too small for its border" in said.out


def test_a_network_is_scored_before_rounding_where_a_spec_asks(esrjax, crumbs, pair):
    words = ["eval", "crumb", "--data", pair[1].parent, "--json"]
    found = {
        name: esrjax(*words, "--spec", name).json["mean"]["psnr"]
        for name in ("ntire", "rgb_unrounded", "rgb_truncated")
    }
    assert len(set(found.values())) == 3
    assert max(found.values()) - min(found.values()) < 0.2


def test_tables_refuse_to_mix_specs(esrjax, crumbs, pair, tmp_path):
    results = tmp_path / "results"
    words = ["--data", pair[1].parent, "-o", results, "--alone"]
    assert esrjax("eval", "crumb", *words).code == 0
    assert esrjax("eval", "loaf", *words, "--spec", "y").code == 0
    for verb in (["rank", results], ["report", results, "-o", tmp_path / "page.html"]):
        said = esrjax(*verb, "--base", "published", "--without-floors")
        assert said.code == 2 and "spec: ntire (crumb), y (loaf)" in said.err
    assert not (tmp_path / "page.html").exists()
