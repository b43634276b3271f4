"""`esrjax metrics`: every convention listed, and one image pair under all of them."""

import numpy as np
import pytest
from PIL import Image

from esrjax.data.image_io import read_image, write_image
from esrjax.data.resize import bicubic_downscale, bicubic_upscale
from esrjax.evaluation.metrics import all_specs, psnr, ssim


@pytest.fixture
def pair(tmp_path):
    """An image, and the bicubic upscaling of its LR version."""
    noise = np.random.default_rng(0).integers(0, 256, (10, 12, 3), np.uint8)
    hr = bicubic_upscale(noise)
    write_image(tmp_path / "hr.png", hr)
    write_image(tmp_path / "sr.png", bicubic_upscale(bicubic_downscale(hr)))
    return tmp_path / "sr.png", tmp_path / "hr.png"


def test_every_spec_is_listed_with_its_convention(esrjax):
    rows = esrjax("metrics", "list", "--json").json
    assert [(row["spec"], row["summary"]) for row in rows] == [
        (spec.name, spec.summary) for spec in all_specs().values()
    ]
    lines = esrjax("metrics", "list").out.splitlines()
    assert lines[1].startswith("ntire ")
    assert lines[1].rstrip().endswith(next(iter(all_specs().values())).summary)


def test_explain_evaluates_every_spec(esrjax, pair):
    sr, hr = (read_image(path).pixels for path in pair)
    rows = {row["spec"]: row for row in esrjax("metrics", "explain", *pair, "--json").json}
    assert list(rows) == list(all_specs())
    for name, spec in all_specs().items():
        assert rows[name]["psnr"] == psnr(sr, hr, spec)
        is_too_small = 2 * spec.crop_border + spec.window_size > 40  # the image is 40 pixels high
        assert rows[name]["ssim"] == (None if is_too_small else ssim(sr, hr, spec))
    text = esrjax("metrics", "explain", *pair).out
    values = [row["psnr"] for row in rows.values()]
    assert f"{max(values) - min(values):.2f} dB between specs" in text
    assert "sr.png is already uint8" in text and "too small" not in text


def test_psnr_of_equal_images_is_infinite(esrjax, pair):
    result = esrjax("metrics", "explain", pair[1], pair[1])
    assert result.out.splitlines()[1].split()[:3] == ["ntire", "inf", "1.00000"]
    assert "between specs" not in result.out
    assert esrjax("metrics", "explain", pair[1], pair[1], "--json").json[0]["psnr"] == "inf"


def test_conversion_of_an_input_image_is_reported(esrjax, tmp_path):
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / "grey.png")
    result = esrjax("metrics", "explain", tmp_path / "grey.png", tmp_path / "grey.png")
    assert any(line.startswith("grey.png: ") for line in result.err.splitlines())
    assert "too small for the border" in result.out


def test_specs_that_need_floats_score_unrounded_outputs(esrjax, crumbs, pair):
    args = ["eval", "crumb", "--data", pair[1].parent, "--json"]
    psnr_by_spec = {
        name: esrjax(*args, "--spec", name).json["mean"]["psnr"]
        for name in ("ntire", "rgb_unrounded", "rgb_truncated")
    }
    assert len(set(psnr_by_spec.values())) == 3
    assert max(psnr_by_spec.values()) - min(psnr_by_spec.values()) < 0.2


def test_results_of_different_specs_cannot_be_ranked_together(esrjax, crumbs, pair, tmp_path):
    results = tmp_path / "results"
    options = ["--data", pair[1].parent, "-o", results, "--no-baseline"]
    assert esrjax("eval", "crumb", *options).code == 0
    assert esrjax("eval", "loaf", *options, "--spec", "y").code == 0
    for command in (["rank", results], ["report", results, "-o", tmp_path / "page.html"]):
        result = esrjax(*command, "--baseline", "published", "--ignore-thresholds")
        assert result.code == 2 and "ntire (crumb), y (loaf)" in result.err
    assert not (tmp_path / "page.html").exists()
