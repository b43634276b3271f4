"""`esrjax data`: a packed dataset is verified, scores and trained on by its name."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from esrjax.data.image_io import write_image
from esrjax.data.resize import bicubic_downscale


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    for seed, name in enumerate("ab"):
        hr = np.random.default_rng(seed).integers(0, 256, (64, 48, 3), np.uint8)
        write_image(tmp_path / f"Photos/HR/{name}.png", hr)
        write_image(tmp_path / f"Photos/LR_bicubic_X4/{name}x4.png", bicubic_downscale(hr))
    return tmp_path / "Photos"


def report(esrjax, photos):
    """The report on a table of one method, with images of the dataset and of a folder."""
    (photos.parent / "table.csv").write_text(
        "team,method,psnr_valid,psnr_test,runtime_ms,params_m,flops_g\n"
        "EfficientSR Organizers,SPAN,26.94,27.01,8,0.15,10\n"
    )
    options = ("--data", "Photos", "--images", f"mine={photos / 'HR'}", "--num-images", 9)
    return esrjax("report", photos.parent / "table.csv", "-o", photos.parent / "r.html", *options)


def test_packed_dataset_is_accepted_by_every_command(esrjax, crumbs, photos, tmp_path):
    args = ["data", "pack", "Photos", "--name", "mine", "--crop-size", 32, "--step", 16, "--json"]
    packed = esrjax(*args).json
    assert (packed["dataset"], packed["num_images"], packed["num_sub_images"]) == (
        "tfds:mine",
        2,
        2 * 3 * 2,
    )
    assert json.loads((tmp_path / "mine/1.0.0/metadata.json").read_text())["images"][0][0] == "a"
    report = esrjax("data", "verify", "tfds:mine", "--json").json
    assert report["passed"] and report["lr_error"] == 0 and report["min_hr_size"] == [32, 32]
    scores = esrjax("eval", "crumb", "--data", "tfds:mine[:4]", "--json").json
    assert list(scores["images"]) == ["a_000", "a_001", "a_002", "a_003"]
    overrides = ["stage.0.data.datasets=['tfds:mine']", "stage.0.data.hr_patch_sizes=[[32, 32]]"]
    options = (arg for override in overrides for arg in ("--set", override))
    plan = esrjax("train", "quick", "--dry-run", *options)
    assert plan.code == 0 and "dataset tfds:mine: 12 images" in plan.out


def test_problems_of_a_dataset_are_reported_with_exit_code_1(esrjax, photos):
    overlapping = esrjax("data", "verify", "Photos", "--against", photos / "HR")
    assert overlapping.code == 1 and "problem: a: " in overlapping.out
    assert esrjax("data", "verify", "Photos").code == 0
    write_image(photos / "LR_bicubic_X4/ax4.png", np.zeros((16, 12, 3), np.uint8))
    wrong_lr = esrjax("data", "verify", "Photos")
    assert wrong_lr.code == 1 and "problem: a: LR" in wrong_lr.out
    assert not esrjax("data", "verify", "Photos", "--json").json["passed"]


def test_what_reading_changes_is_noted_by_every_command(esrjax, crumbs, photos, monkeypatch):
    alpha = np.full((64, 48, 1), 128, np.uint8)
    for path in ("a", "c", "d", "e", "f", "g", "h"):
        hr = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
        Image.fromarray(np.dstack([hr, alpha])).save(photos / f"HR/{path}.png")
        write_image(photos / f"LR_bicubic_X4/{path}x4.png", bicubic_downscale(hr))
    note = "transparency composited over white"
    evaluated = esrjax("eval", "crumb", "--data", "Photos", "--json")
    line = f"a, c, d and 4 more: {note}"
    assert [text for text in evaluated.err.splitlines() if note in text] == [f"Photos: {line}"]
    assert evaluated.json["notes"] == {name: [note] for name in "acdefgh"}
    packed = esrjax("data", "pack", "Photos", "--name", "mine", "--crop-size", 32, "--step", 16)
    assert packed.err.count(note) == 1 and line in packed.err
    options = ("--like", "Photos", "--num-images", 1, "-o", photos.parent / "selected")
    assert line in esrjax("data", "select", "Photos", *options).err
    assert line in report(esrjax, photos).err
    monkeypatch.setattr("esrjax.training.train.run_stages", lambda *args, **options: ())
    overrides = ["stage.0.data.datasets=['Photos']", "stage.0.data.hr_patch_sizes=[[32, 32]]"]
    options = (arg for override in overrides for arg in ("--set", override))
    trained = esrjax("train", "quick", "-o", photos.parent / "run", *options)
    assert f"Photos, {line}" in trained.err


def test_missing_and_infinite_metrics_are_explained(esrjax, tmp_path):
    for name, side in (("a", 40), ("tiny", 12)):
        write_image(tmp_path / f"{name}.png", np.full((side, side, 3), 9, np.uint8))
    notes = {}
    for name in ("a", "tiny"):
        path = tmp_path / f"{name}.png"
        rows = esrjax("metrics", "explain", path, path, "--json").json
        notes[name] = {row["spec"]: (row["psnr"], row["note"]) for row in rows}
    assert notes["a"]["ntire"] == ("inf", "the images are equal: PSNR is infinite")
    assert notes["tiny"]["rgb_border10"] == (None, "the images are too small")


def test_origin_of_lr_is_printed(esrjax, crumbs, photos, tmp_path):
    lr_source = f"read from {photos / 'LR_bicubic_X4'}"
    assert f"Photos: 2 images, LR: {lr_source}\n" in report(esrjax, photos).err
    for command in (
        ["eval", "crumb", "--data", "Photos"],
        ["data", "verify", "Photos", "--against", "Photos:bicubic"],
    ):
        result = esrjax(*command)
        assert "Photos: " in result.err and f"LR: {lr_source}\n" in result.err
        assert esrjax(*command, "--json").json["lr_source"] == lr_source
    assert f"Photos:bicubic: 2 images, LR: {lr_source}\n" in result.err
    overrides = [
        "stage.0.data.datasets=['Photos']",
        "stage.0.data.hr_downscales=[0.5]",
        "stage.0.data.hr_patch_sizes=[[16, 16]]",
    ]
    options = [arg for override in overrides for arg in ("--set", override)]
    dry_run = esrjax("train", "quick", "--dry-run", "--json", *options)
    assert dry_run.code == 0, dry_run.err
    plan = dry_run.json["datasets"]["Photos"]
    assert plan["num_images"] == 4 and len(plan["sha256"]) == 64
    assert plan["lr_source"] == f"{lr_source}, bicubic from HR resized by 0.5"
    (photos / "LR_bicubic_X4").rename(photos / "LR_old")
    unclear = esrjax("eval", "crumb", "--data", "Photos")
    assert unclear.code == 2 and "LR_old" in unclear.err
    assert "LR: bicubic from HR\n" in esrjax("eval", "crumb", "--data", "Photos:bicubic").err


def test_origin_of_lr_of_a_selection_is_that_of_the_new_dataset(esrjax, photos, tmp_path):
    write_image(tmp_path / "Others/c.png", np.full((64, 48, 3), 9, np.uint8))
    options = ("--like", "Photos", "--num-images", 2, "--json")
    result = esrjax("data", "select", "Photos", *options, "-o", tmp_path / "with_lr")
    assert result.json["lr_source"] == f"read from {tmp_path / 'with_lr/LR_X4'}"
    assert [image["name"] for image in result.json["images"]] == ["a", "b"]
    mixed = esrjax("data", "select", "Photos", "Others", *options, "-o", tmp_path / "mixed")
    assert mixed.json["lr_source"] == f"read from {tmp_path / 'mixed/LR_X4'}"
    assert "Others: 1 image, LR: bicubic from HR\n" in mixed.err
    assert f"Photos: 2 images, LR: read from {photos / 'LR_bicubic_X4'}\n" in mixed.err


def test_known_datasets_are_listed_with_source_and_local_folder(esrjax, monkeypatch, tmp_path):
    (tmp_path / "Set5").mkdir()
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    rows = {row["name"]: row for row in esrjax("data", "list", "--json").json}
    assert rows["Set5"]["folder"] == str(tmp_path / "Set5")
    assert rows["DIV2K, training"]["images"] == 800
    assert all(row["source"] and row["terms"] for row in rows.values())
    assert rows["Set5"]["sha256"][:16] in esrjax("data", "list").out
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    missing = esrjax("eval", "span", "--data", "T91")
    assert missing.code == 2 and f"T91 is from {rows['T91']['source']}" in missing.err


def test_other_pixels_than_those_of_a_known_dataset_are_noted(esrjax, photos, tmp_path):
    report = esrjax("data", "verify", photos, "--json").json
    copy = shutil.copytree(photos, tmp_path / "Set5")
    changed = esrjax("data", "verify", copy, "--json").json
    assert changed["hr_sha256"] == report["hr_sha256"]  # of the pixels, not of the folder
    assert any("are not those of `esrjax data list`" in note for note in changed["notes"])
    assert not any("data list" in note for note in report["notes"])
