"""Verification of datasets: damaged images, wrong LR, deep images, leaks, duplicates, names."""

import numpy as np
import pytest
from PIL import Image

from esrjax.data.datasets import dataset_info, list_folder_pairs
from esrjax.data.image_io import read_image, write_image
from esrjax.data.resize import bicubic_downscale, bicubic_upscale
from esrjax.data.verify import verify_dataset


def noise(seed, height=48, width=56):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return bicubic_upscale(coarse)


@pytest.fixture
def folder(tmp_path):
    """A correct dataset of three pairs."""
    for seed, name in enumerate("abc"):
        hr = noise(seed)
        write_image(tmp_path / f"mine/HR/{name}.png", hr)
        write_image(tmp_path / f"mine/LR_bicubic_X4/{name}x4.png", bicubic_downscale(hr))
    return tmp_path / "mine"


def test_correct_dataset_has_no_problems(folder):
    report = verify_dataset(list_folder_pairs(folder))
    assert (report.problems, report.notes) == ((), ())
    assert (report.num_images, report.min_hr_size, report.lr_error) == (3, (48, 56), 0)


def truncate(path, hr):
    path.write_bytes(path.read_bytes()[:100])


def write_wrong_size(path, hr):
    write_image(path, hr[:8, :8])


def change_pixel(path, hr):
    lr = read_image(path).pixels
    lr[5, 5] ^= 8
    write_image(path, lr)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "bx4.png"),
        (write_wrong_size, "8x8"),
        (change_pixel, "by up to 8 levels"),
    ],
)
def test_wrong_lr_image_is_reported(folder, damage, reason):
    damage(folder / "LR_bicubic_X4/bx4.png", read_image(folder / "HR/b.png").pixels)
    (problem,) = verify_dataset(list_folder_pairs(folder)).problems
    assert reason in problem and problem.startswith("b: ")
    assert not verify_dataset(list_folder_pairs(folder)[:1]).problems


def test_lr_is_compared_within_a_tolerance_except_for_its_outer_pixels(folder):
    path = folder / "LR_bicubic_X4/ax4.png"
    lr = read_image(path).pixels
    lr[0] ^= 8
    lr[5, 5] ^= 4
    write_image(path, lr)
    assert not verify_dataset(list_folder_pairs(folder), tolerance=4).problems
    assert verify_dataset(list_folder_pairs(folder), tolerance=3).problems


def test_lr_of_another_track_is_not_compared_with_bicubic(folder):
    (folder / "LR_bicubic_X4").rename(folder / "LR_unknown_X4")
    change_pixel(folder / "LR_unknown_X4/ax4.png", None)
    report = verify_dataset(list_folder_pairs(folder))
    assert (report.problems, report.lr_error) == ((), None)
    assert any("track unknown" in note for note in report.notes)


def test_16_bit_images_are_problems_and_palettes_are_notes(folder):
    Image.fromarray(np.full((48, 56), 40_000, np.uint16)).save(folder / "HR/b.png")
    image = Image.fromarray(read_image(folder / "HR/c.png").pixels).quantize(256)
    image.save(folder / "HR/c.png")
    report = verify_dataset(list_folder_pairs(folder), tolerance=255)
    (problem,) = report.problems
    assert problem.startswith("b: HR") and "16 bits" in problem
    assert "c: palette converted to RGB" in report.notes
    Image.fromarray(np.full((12, 14), 40_000, np.uint16)).save(folder / "LR_bicubic_X4/ax4.png")
    report = verify_dataset(list_folder_pairs(folder)[:1], tolerance=255)
    (problem,) = report.problems
    assert problem.startswith("a: LR") and "16 bits" in problem
    assert "a: LR: grey repeated in three channels" in report.notes


def test_images_of_the_validation_set_are_found(folder, tmp_path):
    valid = tmp_path / "valid"
    hr = read_image(folder / "HR/b.png").pixels
    write_image(valid / "same.png", hr)
    write_image(valid / "other.png", noise(9))
    write_image(valid / "brighter.png", read_image(folder / "HR/c.png").pixels // 2 + 64)
    report = verify_dataset(list_folder_pairs(folder), against=list_folder_pairs(valid))
    assert report.problems == ("b: the same image as same of a held-out dataset",)
    assert report.notes == ("c: looks like brighter of a held-out dataset",)


def test_duplicate_images_are_noted(tmp_path):
    for name in "ab":
        write_image(tmp_path / f"{name}.png", noise(0))
    assert verify_dataset(list_folder_pairs(tmp_path)).notes == ("a, b: the same image",)


def test_wild_track_has_the_hr_images_of_the_dataset(tmp_path):
    """DIV2K's wild track has four LR images of an HR image, named 0001x4w1."""
    for seed, name in enumerate(("baby", "bird", "butterfly", "head", "woman")):
        hr = noise(seed)
        write_image(tmp_path / f"Set5/Set5_HR/{name}.png", hr)
        for index in (1, 2):
            lr = tmp_path / f"Set5/Set5_LR_wild/{name}x4w{index}.png"
            write_image(lr, bicubic_downscale(hr))
    pairs = list_folder_pairs(tmp_path / "Set5")
    report = verify_dataset(pairs, expected=dataset_info("data/Set5"))
    assert (report.num_images, report.problems, report.lr_error) == (10, (), None)
    assert report.notes[0] == "LR of the track wild is not compared with bicubic LR"
    without_head = [pair for pair in pairs if pair.hr.stem != "head"]
    count, missing = verify_dataset(without_head, expected=dataset_info("data/Set5")).problems
    assert "Set5 has 5 images, this dataset 4" in count and missing == "missing: head"


def test_missing_and_unexpected_names_of_a_known_dataset_are_reported(tmp_path):
    for name in ("baby", "bird", "butterfly", "Woman"):
        write_image(tmp_path / f"Set5/HR/{name}.png", noise(len(name)))
    pairs = list_folder_pairs(tmp_path / "Set5")
    count, missing, unexpected = verify_dataset(pairs, expected=dataset_info("data/Set5")).problems[
        :3
    ]
    assert "Set5 has 5 images" in count and "4" in count
    assert missing == "missing: head, woman"
    assert "Set5" in unexpected and unexpected.endswith(": Woman")


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("DIV2K", "DIV2K, training"),
        ("DIV2K/DIV2K_train_HR", "DIV2K, training"),
        ("x/DIV2K_valid_HR", "DIV2K, validation"),
        ("DIV2K/valid", "DIV2K, validation"),
        ("DIV2K_test_HR", "DIV2K, test"),
        ("LSDIR/HR", "LSDIR, training"),
        ("LSDIR_valid", "LSDIR, validation"),
        ("LSDIR/test/HR", "LSDIR, test"),
        ("valid", None),
        ("Flickr2K", "Flickr2K"),
        ("DIV2K_LSDIR_valid_HR", "NTIRE DIV2K and LSDIR, validation"),
        ("BSD100", "B100"),
        ("LSDIR[:100]", None),
        ("tfds:div2k", None),
        ("holidays", None),
    ],
)
def test_known_datasets_are_recognized_by_name(name, title):
    info = dataset_info(name)
    assert (info and info.title) == title


@pytest.mark.parametrize("name", ["Set5", "Set14", "B100"])
def test_reference_datasets_are_correct(reference, name):
    folder = reference / "data" / name
    expected = dataset_info(name) if name != "B100" else None  # only 14 of its 100 are checked
    report = verify_dataset(list_folder_pairs(folder)[:14], expected=expected)
    assert (report.problems, report.notes, report.lr_error) == ((), (), 0)
