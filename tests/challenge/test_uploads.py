"""Uploads of SR images: written for the server, checked by name and size, scored against HR."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from esrjax.challenge import results, rules, uploads
from esrjax.challenge.record import entries_json, merge_entries
from esrjax.challenge.submission import results_entry
from esrjax.data import datasets
from esrjax.data.image_io import write_image
from esrjax.data.resize import bicubic_upscale
from esrjax.errors import InvalidOutput, NotFound, RankingError, SubmissionError, UnreadableFile

RULES = rules.load_rules("ntire2026")
FORMAT = RULES.upload
README = "runtime per image [s] : 0.015000\nCPU[1] / GPU[0] : 0\n"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A dataset of two HR images of different sizes."""
    folder, rng = tmp_path_factory.mktemp("data") / "test", np.random.default_rng(0)
    for name, height in (("0901", 48), ("0902", 64)):
        coarse = rng.integers(0, 256, (height // 4, 16, 3), np.uint8)
        write_image(folder / f"{name}.png", bicubic_upscale(coarse))
    return datasets.list_pairs(folder)


@pytest.fixture
def upload(pairs, tmp_path):
    """The bicubic images as a zip, and a folder of the same."""
    path = tmp_path / "test_sr.zip"
    uploads.write_upload(path, pairs, bicubic_upscale, FORMAT, README)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "folder")
    return path


def test_zip_has_images_and_readme_and_is_deterministic(pairs, upload, tmp_path):
    with zipfile.ZipFile(upload) as archive:
        assert archive.namelist() == ["0901x4.png", "0902x4.png", "readme.txt"]
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    uploads.write_upload(tmp_path / "again.zip", pairs, bicubic_upscale, FORMAT, README)
    assert (tmp_path / "again.zip").read_bytes() == upload.read_bytes()
    other = replace(FORMAT, image_name="{name}.png")
    uploads.write_upload(tmp_path / "other.zip", pairs[:1], bicubic_upscale, other, "")
    assert zipfile.ZipFile(tmp_path / "other.zip").namelist() == ["0901.png", "readme.txt"]


def test_wrong_size_of_a_network_leaves_no_zip(pairs, tmp_path):
    with pytest.raises(InvalidOutput, match="48x60"):
        cropped = lambda lr: bicubic_upscale(lr)[:, :-4]  # noqa: E731
        uploads.write_upload(tmp_path / "a.zip", pairs, cropped, FORMAT, README)
    assert list(tmp_path.iterdir()) == []


def test_readme_has_the_conventional_lines():
    text = uploads.readme_text(
        FORMAT, 12.5, "Some CPU, 2 cores", extra_data="1", description="net;\nfour words"
    )
    assert text == (
        "runtime per image [s] : 0.012500\nCPU[1] / GPU[0] : 1\n"
        "Extra Data [1] / No Extra Data [0] : 1\nOther description : net; four words\n"
    )
    gpu = uploads.readme_text(FORMAT, 1.0, "NVIDIA A100", extra_data="0", description="")
    assert "CPU[1] / GPU[0] : 0" in gpu
    assert RULES.upload == rules.UploadFormat()  # the shipped rules state the convention


@pytest.mark.parametrize("text", ["{name}", "x4.png", "a/{name}.png", "{name}{scale}.png"])
def test_invalid_form_of_names_is_refused(text):
    with pytest.raises(ValueError, match=r"image_name|fields"):
        rules.UploadFormat(image_name=text)


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_uploaded_images_have_the_psnr_of_the_network(pairs, upload, tmp_path, form):
    path = upload if form == "zip" else tmp_path / "folder"
    scores = uploads.score_upload(path, pairs, RULES, iter)
    expected = uploads.score(bicubic_upscale, pairs, uploads.get_spec("ntire"))
    assert scores == expected and scores.mean.psnr > 20


def test_missing_additional_and_wrong_images_are_all_named(pairs, upload, tmp_path):
    folder = tmp_path / "folder"
    (folder / "0901x4.png").rename(folder / "0901.png")
    write_image(folder / "0902x4.png", np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(SubmissionError) as error:
        uploads.score_upload(folder, pairs, RULES, iter)
    for line in (
        "3 problems",
        "0901x4.png is missing",
        "0901.png is not expected",
        "0902x4.png is 48x64, not 64x64 (height x width)",
    ):
        assert line in str(error.value)
    (folder / "0902x4.png").write_bytes(b"text")
    with pytest.raises(SubmissionError, match=r"0902x4\.png is no image"):
        uploads.check_upload(folder, pairs, FORMAT)


def test_lr_only_images_check_an_upload(upload, pairs, tmp_path):
    for pair in pairs:
        write_image(tmp_path / f"test_LR/{pair.name}x4.png", pair.load_lr())
    images = datasets.list_lr_images(tmp_path / "test_LR")
    assert not datasets.has_hr(images)
    uploads.check_upload(upload, images, FORMAT)
    with pytest.raises(SubmissionError, match=r"0902x4\.png is not expected"):
        uploads.check_upload(upload, images[:1], FORMAT)


def test_damaged_zips_and_folders_in_zips_are_refused(pairs, upload, tmp_path):
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(upload.read_bytes()[:-40])
    with pytest.raises(SubmissionError, match="Cannot read the upload"):
        uploads.check_upload(damaged, pairs, FORMAT)
    content = bytearray(upload.read_bytes())
    content[200] ^= 255  # inside the first image: its checksum is wrong
    damaged.write_bytes(content)
    with pytest.raises(SubmissionError, match=r"0901x4\.png"):
        uploads.score_upload(damaged, pairs, RULES, iter)
    with pytest.raises(SubmissionError, match="Cannot read the upload"):
        uploads.check_upload(tmp_path / "missing.zip", pairs, FORMAT)
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        for file in sorted((tmp_path / "folder").iterdir()):
            archive.write(file, f"sr/{file.name}")
    with pytest.raises(SubmissionError, match=r"sr/0901x4\.png is in a folder"):
        uploads.check_upload(tmp_path / "nested.zip", pairs, FORMAT)


def test_images_that_equal_hr_are_refused(pairs, tmp_path):
    for pair in pairs:
        write_image(tmp_path / f"{pair.name}x4.png", pair.load()[1])
    with pytest.raises(RankingError, match="infinite: 0901, 0902"):
        uploads.score_upload(tmp_path, pairs, RULES, iter)


def test_entry_says_whose_figures_it_has(pairs, upload, both_splits, tmp_path):
    entry = results_entry(replace(both_splits, quality={"valid": both_splits.quality["valid"]}))
    scores = uploads.score_upload(upload, pairs, RULES, iter)
    scored = uploads.scored_entry(entry, "test", scores, upload, team="Alpha", measured_by="Alpha")
    assert scored.test_ave_psnr == scores.mean.psnr
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries/Alpha.json").write_text(entries_json({"77_net": scored}))
    (row,) = results.read_rows(tmp_path / "entries", RULES)
    assert (row.team, row.psnr_valid, row.psnr_test) == ("Alpha", 26.75, scores.mean.psnr)
    assert "computed from the SR images in test_sr.zip (sha256 " in row.provenance["psnr_test"]
    assert row.provenance["psnr_valid"].endswith("reported by Alpha")
    assert row.provenance["runtime_ms"].endswith("measured by Alpha")
    with pytest.raises(SubmissionError, match="2 runtimes on test, the dataset 1 images"):
        first = uploads.score(bicubic_upscale, pairs[:1], uploads.get_spec("ntire"))
        uploads.scored_entry(entry, "test", first, upload, team="A", measured_by="A")


def test_entries_are_merged_by_number_with_their_teams(both_splits, tmp_path):
    entry = results_entry(both_splits)
    for name, key in (("Beta.json", "78_net"), ("00/results.json", "00_SPAN")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(entries_json({key: entry}))
    merged, files = merge_entries(tmp_path, RULES)
    teams = {key: value.team for key, value in merged.items()}
    assert teams == {"00_SPAN": "EfficientSR Organizers", "78_net": "Beta"} and len(files) == 2
    (tmp_path / "Gamma.json").write_text(entries_json({"78_net": entry}))
    with pytest.raises(UnreadableFile, match=r"'78_net': Beta\.json and Gamma\.json"):
        merge_entries(tmp_path, RULES)
    with pytest.raises(NotFound, match="No entries"):
        merge_entries(tmp_path / "none", RULES)
    assert json.loads(entries_json(merged))["78_net"]["team"] == "Beta"
