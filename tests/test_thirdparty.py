"""A third-party package, installed by pip: every command knows it, and its own test passes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esrjax import registry
from esrjax.data.image_io import read_image, write_image
from esrjax.data.resize import bicubic_downscale, mod_crop
from esrjax.evaluation.metrics import to_uint8
from esrjax.inference import open_method
from esrjax.nn.checkpoint_io import read_checkpoint

SOURCE = Path(__file__).parent / "thirdparty"
pytestmark = pytest.mark.usefixtures("crumbs")


@pytest.fixture
def images(tmp_path):
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (40, 36, 3), np.uint8)
        write_image(tmp_path / f"images/{name}.png", noise)
    return tmp_path / "images"


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
    assert run.returncode == 0 and "3 passed" in run.stdout, run.stdout + run.stderr


def test_new_process_finds_it(tmp_path):
    run = subprocess.run(
        [Path(sys.executable).parent / "esrjax", "method", "show", "crumb"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith("crumb  (x2, x4, Bakery; from crumbs 0.3)\n")


def test_it_is_listed_and_shown(esrjax, monkeypatch):
    monkeypatch.setenv(registry.PLUGINS_ENV, "span, crumb, loaf, crumbs")
    rows = {row["name"]: row for row in esrjax("method", "list", "--json").json}
    assert set(rows) == {"crumb", "loaf", "crumbs", "span"}
    assert rows["crumbs"] == {
        "name": "crumbs",
        "team": "Bakery",
        "scales": [4],
        "params": 33,
        "macs": 8 * 27 * 256**2,
        "weights": [],
        "pretrained": True,
    }
    assert esrjax("method", "show", "crumb", "--json").json["package"] == "crumbs 0.3"
    text = esrjax("method", "show", "crumbs").out
    assert "crumb              x8 self-ensemble, weight 3" in text
    assert "loaf               single pass, weight 1" in text


@pytest.mark.parametrize("name", ["crumb", "loaf"])
def test_it_passes_all_checks(esrjax, name):
    result = esrjax("method", "check", name)
    assert (result.code, result.out.splitlines()[-1]) == (0, f"{name}: 8 of 8 checks passed")
    rows = esrjax("method", "check", name, "--json").json
    assert len(rows) == 8 and all(row["passed"] and row["error"] is None for row in rows)


def test_it_upscales_images(esrjax, images, tmp_path):
    for name in ("crumb", "loaf", "crumbs"):
        options = ["--tile", 16, "--method", name, "-o", tmp_path / name]
        result = esrjax("upscale", images, *options)
        assert result.code == 0
        assert result.out.startswith(f"2 images written to {tmp_path / name} (")
        assert read_image(tmp_path / name / "ax4.png").pixels.shape == (160, 144, 3)
    crumb, loaf = (open_method(name).upscaler() for name in ("crumb", "loaf"))
    lr = read_image(images / "b.png").pixels
    assert np.array_equal(read_image(tmp_path / "loaf/bx4.png").pixels, to_uint8(loaf(lr), 1.0))
    assert np.array_equal(read_image(tmp_path / "crumb/bx4.png").pixels, to_uint8(crumb(lr), 1.0))
    one = tmp_path / "one.webp"
    esrjax("upscale", images / "b.png", "--method", "crumb", "--self-ensemble", "-o", one)
    self_ensemble = open_method("crumb").upscaler(self_ensemble=True)(lr)
    assert np.array_equal(read_image(one).pixels, to_uint8(self_ensemble, 1.0))
    assert not np.array_equal(read_image(one).pixels, to_uint8(crumb(lr), 1.0))


def test_conversion_of_an_input_image_is_reported(esrjax, tmp_path):
    Image.new("L", (9, 8), 77).save(tmp_path / "grey.png")
    options = ["--method", "crumb", "-o", tmp_path / "b.png"]
    result = esrjax("upscale", tmp_path / "grey.png", *options)
    (line,) = result.err.splitlines()
    assert line.startswith(f"{tmp_path}/grey.png: ")
    assert result.out.startswith(f"1 image written to {tmp_path}/b.png (")


def test_its_weights_are_converted(esrjax, crumbs, tmp_path):
    convert, weights = ["weights", "convert", "crumb"], crumbs / "crumbs/crumb.safetensors"
    result = esrjax(*convert, weights, "-o", tmp_path / "crumb.pth")
    assert result.out == f"{tmp_path}/crumb.pth: crumb, deploy form, 2 tensors, 30 parameters\n"
    back = esrjax(*convert, tmp_path / "crumb.pth", "-o", tmp_path / "back.safetensors")
    assert back.code == 0


def test_it_is_evaluated_and_ranked_with_the_baseline(esrjax, reference, images, tmp_path):
    results, span = tmp_path / "results", reference / "weights/team00_SPAN.pth"
    args = ["eval", "crumb", "loaf", "span", "--data", images, "-o", results]
    assert esrjax(*args, "--checkpoint", f"span={span}").code == 0
    rows = {row["method"]: row for row in esrjax("rank", results, "--json").json["rows"]}
    assert rows["span"]["status"] == "baseline"
    assert rows["crumb"]["status"] == rows["loaf"]["status"] != "ranked"
    assert all(rows[name]["rank_main"] is None and not rows[name]["ranked"] for name in rows)
    report = esrjax("rank", results, "--ignore-thresholds", "--json").json
    ranks = {row["method"]: row["rank_params"] for row in report["rows"]}
    assert ranks == {"loaf": 1, "crumb": 2, "span": None}
    assert report["apply_thresholds"] is False


def test_its_loss_and_optimizer_train_and_its_metric_scores(esrjax, images, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"""
method = "crumb"
seed = 1
[[stage]]
name = "bake"
init_from = "scratch"
steps = 3
loss = {{ blurred_l1 = 1.0 }}
optimizer = {{ name = "sign_sgd", learning_rate = 1e-3 }}
data = {{ datasets = ["{images}"], hr_patch_sizes = [[24, 24]], batch_size = 2 }}
validation = {{ dataset = "{images}", every = 3, spec = "border1" }}
""")
    assert esrjax("train", recipe, "-o", tmp_path / "run").code == 0
    scores = esrjax("eval", "crumb", "--data", images, "--spec", "border1").out
    assert "border1" in scores and "border1" in esrjax("metrics", "list").out
    check_x2(esrjax, recipe, images, tmp_path)
    text = recipe.read_text()
    for old, new, group in (
        ("blurred_l1", "blured_l1", "esrjax.losses"),
        ("sign_sgd", "sign_sdg", "esrjax.optimizers"),
    ):
        recipe.write_text(text.replace(old, new))
        result = esrjax("train", recipe, "-o", tmp_path / "other")
        assert result.code == 2 and repr(new) in result.err and group in result.err
        assert f"did you mean {old!r}?" in result.err


def check_x2(esrjax, recipe, images, tmp_path):
    """Every command takes the scale of a network for x2 from its weights."""
    run, sr = tmp_path / "x2", tmp_path / "sr.png"
    assert esrjax("train", recipe, "-o", run, "--set", "hparams.scale=2").code == 0
    assert open_method("crumb", run).scale == 2
    assert esrjax("upscale", images / "b.png", "--checkpoint", run, "-o", sr).code == 0
    lr = read_image(images / "b.png").pixels
    height, width, _ = lr.shape
    assert read_image(sr).pixels.shape == (2 * height, 2 * width, 3)
    hr = mod_crop(read_image(images / "b.png").pixels, 2)
    error = hr[2:-2, 2:-2] - open_method("crumb", run)(bicubic_downscale(hr, 2))[2:-2, 2:-2] * 1.0
    scored = esrjax("eval", "crumb", "--checkpoint", run, "--data", images, "--json").json
    psnr = 20 * np.log10(255) - 10 * np.log10(np.mean(error**2))
    assert scored["images"]["b"]["psnr"] == pytest.approx(psnr, abs=1e-9)
    file = tmp_path / "x2.safetensors"
    assert esrjax("weights", "convert", "crumb", run, "-o", file).code == 0
    assert read_checkpoint(file).metadata.scale == 2
    for args, problem in (
        (
            ["upscale", images, "-o", tmp_path / "n", "--checkpoint", file, "--hparam", "scale=4"],
            "x2",
        ),
        (["eval", "crumb", "--data", images, "-o", tmp_path / "n", "--checkpoint", file], "for x4"),
        (["method", "cost", "crumb", "--hparam", "scale=5"], "Unsupported scale: 5"),
        (["bench", "crumb", "--hparam", "scale=3"], "Unsupported scale: 3"),
        (["bench", "loaf", "--hparam", "scale=4"], "Unknown hyperparameter: scale"),
        (["train", recipe, "--dry-run", "--set", "hparams.scale=3"], "Unsupported scale: 3"),
        (["train", recipe, "--dry-run", "--set", "sizes.scale=2"], "sizes"),
    ):
        result = esrjax(*args)
        assert result.code == 2 and problem in result.err and "remedy" in result.err, result
    assert not (tmp_path / "n").exists()
