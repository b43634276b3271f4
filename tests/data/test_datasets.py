"""Dataset folders: supported layouts, pairing of HR and LR, errors, search path."""

from pathlib import Path

import numpy as np
import pytest

from esrjax.data import datasets
from esrjax.data.datasets import Pair, dataset_title, list_folder_pairs, locate_dataset
from esrjax.data.image_io import read_image, write_image
from esrjax.data.resize import bicubic_downscale, mod_crop
from esrjax.errors import DatasetError, DatasetNotFound, UnreadableFile

LAYOUTS = [("HR", "LR_bicubic_X4"), ("X_valid_HR", "X_valid_LR"), ("D_HR", "D_LR_bicubic/X4")]


def write_noise(path: Path, height: int, width: int) -> Path:
    write_image(path, np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    return path


def make_dataset(folder: Path, hr: str, lr: str, names: tuple[str, ...] = ("a-b", "a")) -> Path:
    for name in names:
        write_noise(folder / hr / f"{name}.png", 16, 12)
        write_noise(folder / lr / f"{name}x4.png", 4, 3)
    return folder


@pytest.mark.parametrize(("hr", "lr"), LAYOUTS)
@pytest.mark.parametrize("folder", ["dataset", "hr"])
def test_hr_and_lr_are_paired_by_name(tmp_path: Path, hr: str, lr: str, folder: str) -> None:
    make_dataset(tmp_path, hr, lr)
    pairs = list_folder_pairs(tmp_path if folder == "dataset" else tmp_path / hr)
    assert pairs == tuple(
        Pair(name=name, hr=tmp_path / hr / f"{name}.png", lr=tmp_path / lr / f"{name}x4.png")
        for name in ("a", "a-b")  # sorted by stem; the file "a-b.png" sorts before "a.png"
    )


@pytest.mark.parametrize("hr", ["", "HR", "X_HR"])
@pytest.mark.parametrize("folder", ["dataset", "hr"])
def test_lr_is_computed_where_there_is_none(tmp_path: Path, hr: str, folder: str) -> None:
    path = write_noise(tmp_path / "dataset" / hr / "a.png", 19, 14)
    (pair,) = list_folder_pairs(tmp_path / "dataset" if folder == "dataset" else path.parent)
    assert pair == Pair(name="a", hr=path, lr=None)
    lr, hr_pixels = pair.load()
    assert np.array_equal(hr_pixels, read_image(path).pixels[:16, :12])
    assert np.array_equal(lr, bicubic_downscale(hr_pixels))


def test_scale_selects_the_lr_folder(tmp_path: Path) -> None:
    make_dataset(tmp_path, "HR", "LR_bicubic_X4")
    write_noise(tmp_path / "LR_bicubic_X2/ax2.png", 8, 6)
    write_noise(tmp_path / "LR_bicubic_X2/a-bx2.png", 8, 6)
    for scale in (2, 4):
        lr, hr = list_folder_pairs(tmp_path, scale)[0].load()
        assert hr.shape == (scale * lr.shape[0], scale * lr.shape[1], 3)
    assert list_folder_pairs(tmp_path, 3)[0].lr is None


def test_lsdir_is_read_from_folders_of_a_thousand_images(tmp_path: Path) -> None:
    for thousand, name in (("0001000", "0000007"), ("0002000", "0001001")):
        write_noise(tmp_path / f"HR/{thousand}/{name}.png", 16, 12)
        write_noise(tmp_path / f"X4/{thousand}/{name}x4.png", 4, 3)
    pairs = list_folder_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["0000007", "0001001"]
    assert all(pair.lr is not None and pair.load()[0].shape == (4, 3, 3) for pair in pairs)
    write_noise(tmp_path / "HR/0003000/0000007.png", 16, 12)
    with pytest.raises(DatasetError, match=r"0001000/0000007\.png and 0003000/0000007\.png"):
        list_folder_pairs(tmp_path)


def test_loading_reads_the_lr_file_and_crops_the_hr(tmp_path: Path) -> None:
    hr, lr = (
        write_noise(tmp_path / "HR/a.png", 18, 15),
        write_noise(tmp_path / "LR_bicubic_X4/ax4.png", 4, 3),
    )
    lr_pixels, hr_pixels = list_folder_pairs(tmp_path)[0].load()
    assert np.array_equal(lr_pixels, read_image(lr).pixels)
    assert np.array_equal(hr_pixels, mod_crop(read_image(hr).pixels))


def test_lr_of_wrong_size_is_reported(tmp_path: Path) -> None:
    hr, lr = (
        write_noise(tmp_path / "HR/a.png", 18, 15),
        write_noise(tmp_path / "LR_bicubic_X4/ax4.png", 5, 3),
    )
    with pytest.raises(DatasetError) as caught:
        list_folder_pairs(tmp_path)[0].load()
    assert "5x3" in caught.value.problem and "16x12" in caught.value.problem
    assert caught.value.location == f"'{hr}' and '{lr}'"
    assert "multiples of 4" in caught.value.rule and caught.value.remedy


@pytest.mark.parametrize("hr", ["", "HR"])
def test_lr_size_is_read_from_the_header_alone(tmp_path: Path, hr: str) -> None:
    path = write_noise(tmp_path / hr / "a.png", 19, 14)
    (pair,) = list_folder_pairs(tmp_path)
    assert pair.lr_size() == (4, 3) == pair.load()[0].shape[:2]
    path.write_bytes(path.read_bytes()[:60])
    assert pair.lr_size() == (4, 3)


def test_lr_size_is_that_of_the_lr_file(tmp_path: Path) -> None:
    write_noise(tmp_path / "HR/a.png", 18, 15)
    lr = write_noise(tmp_path / "LR_bicubic_X4/ax4.png", 4, 3)
    (pair,) = list_folder_pairs(tmp_path)
    assert pair.lr_size() == (4, 3)
    write_noise(lr, 5, 3)
    with pytest.raises(DatasetError, match="5x3") as caught:
        pair.lr_size()
    assert caught.value.location == f"'{pair.hr}' and '{lr}'"


def test_header_is_read_once_until_the_file_changes(tmp_path: Path, monkeypatch) -> None:
    paths: list[Path] = []
    read = datasets.read_image_size
    monkeypatch.setattr(datasets, "read_image_size", lambda path: paths.append(path) or read(path))
    path = write_noise(tmp_path / "a.png", 16, 12)
    assert [datasets.header_size(path) for _ in range(3)] == 3 * [(16, 12)] and paths == [path]
    write_noise(path, 20, 24)
    assert datasets.header_size(path) == (20, 24)
    path.unlink()
    with pytest.raises(UnreadableFile):
        datasets.header_size(path)


def test_title_names_the_chosen_lr_folder(tmp_path: Path) -> None:
    make_dataset(tmp_path / "D", "HR", "LR_unknown/X4")
    assert dataset_title(f"{tmp_path / 'D'}:unknown") == "D:unknown"
    assert dataset_title(tmp_path / "D") == "D"


def test_hr_smaller_than_the_scale_is_reported(tmp_path: Path) -> None:
    hr = write_noise(tmp_path / "a.png", 3, 9)
    with pytest.raises(DatasetError) as caught:
        list_folder_pairs(tmp_path)[0].load()
    assert "0x2" in caught.value.problem and "0x8" in caught.value.problem
    assert caught.value.location == f"'{hr}'"


def test_all_unpaired_images_are_reported_at_once(tmp_path: Path) -> None:
    make_dataset(tmp_path, "HR", "LR_bicubic_X4")
    for name in "cdefghi":
        write_noise(tmp_path / f"HR/{name}.png", 16, 12)
    write_noise(tmp_path / "LR_bicubic_X4/zx4.png", 4, 3)
    write_noise(tmp_path / "LR_bicubic_X4/c.png", 4, 3)
    with pytest.raises(DatasetError) as caught:
        list_folder_pairs(tmp_path)
    problem = caught.value.problem
    assert f"'{tmp_path}'" in problem
    assert "7 HR without LR: c.png, d.png, e.png, f.png, g.png and 2 more" in problem
    assert "2 LR without HR: c.png, zx4.png" in problem
    assert "NAMEx4" in caught.value.rule and caught.value.remedy


def ambiguous_folders(folder: Path) -> dict[Path, str]:
    """Return folders that are not one dataset, with a part of the expected reason."""
    make_dataset(folder / "two", "X_valid_HR", "X_valid_LR")
    make_dataset(folder / "two", "X_test_HR", "X_test_LR")
    write_noise(make_dataset(folder / "mixed", "HR", "LR") / "a.png", 16, 12)
    write_noise(make_dataset(folder / "lr", "HR", "LR_bicubic_X4") / "LR/ax4.png", 4, 3)
    write_noise(folder / "alone/LR_bicubic_X4/ax4.png", 4, 3)
    write_noise(write_noise(folder / "twice/a.png", 16, 12).with_suffix(".bmp"), 16, 12)
    return {
        folder / "two": "X_test_HR, X_valid_HR",
        folder / "mixed": "HR and images",
        folder / "lr": "LR, LR_bicubic_X4",
        folder / "alone": "LR_bicubic_X4 but no HR folder",
        folder / "alone/LR_bicubic_X4": "LR folder",
        folder / "two/X_test_LR": "LR folder",
        folder / "twice": "a.bmp and a.png",
    }


def test_ambiguous_folder_is_reported(tmp_path: Path) -> None:
    for folder, reason in ambiguous_folders(tmp_path).items():
        with pytest.raises(DatasetError) as caught:
            list_folder_pairs(folder)
        reported_folder = folder / "HR" if folder.name == "lr" else folder
        assert f"'{reported_folder}'" in caught.value.problem and reason in caught.value.problem
        assert "LR_bicubic_X4/" in caught.value.rule and caught.value.remedy


@pytest.mark.parametrize(("name", "reason"), [("empty", "no images"), ("nowhere", "not a folder")])
def test_folder_without_images_is_reported(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty/subfolder").mkdir(parents=True)
    with pytest.raises(DatasetNotFound) as caught:
        list_folder_pairs(tmp_path / name)
    assert f"'{tmp_path / name}'" in caught.value.problem and reason in caught.value.problem
    assert "LR_bicubic_X4/" in caught.value.rule and caught.value.remedy


def test_path_has_precedence_over_esrjax_data_over_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / "cwd/Set5", tmp_path / "mine/Set5", tmp_path / "reference/data/Set5"]
    for folder in folders:
        folder.mkdir(parents=True)
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("ESRJAX_REFERENCE", str(tmp_path / "reference"))
    monkeypatch.chdir(tmp_path / "cwd")
    for folder in folders:
        assert locate_dataset("Set5").resolve() == folder
        folder.rmdir()


def test_unknown_dataset_is_reported_with_the_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data/DIV2K").mkdir(parents=True)
    (tmp_path / "data/B100").mkdir()
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("ESRJAX_REFERENCE", str(tmp_path))
    with pytest.raises(DatasetNotFound) as caught:
        locate_dataset("div-2k")
    assert "'div-2k'" in caught.value.problem
    location = caught.value.location
    assert f"'{tmp_path / 'mine'}'" in location and f"'{tmp_path / 'data'}'" in location
    assert "B100, DIV2K" in location
    assert "$ESRJAX_DATA" in caught.value.rule and "'DIV2K'" in caught.value.remedy
    monkeypatch.delenv("ESRJAX_DATA")
    monkeypatch.delenv("ESRJAX_REFERENCE")
    with pytest.raises(DatasetNotFound) as caught:
        locate_dataset("Set5")
    assert caught.value.location is None
    assert "ESRJAX_DATA" in caught.value.remedy


@pytest.mark.parametrize(("name", "num_images"), [("Set5", 5), ("Set14", 14), ("B100", 100)])
def test_reference_datasets_are_complete(
    reference: Path, monkeypatch: pytest.MonkeyPatch, name: str, num_images: int
) -> None:
    monkeypatch.setenv("ESRJAX_REFERENCE", str(reference))
    pairs = list_folder_pairs(locate_dataset(name))
    assert len(pairs) == num_images
    assert all(pair.lr is not None for pair in pairs)
