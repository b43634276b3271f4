"""Every layout of a set is recognised; whatever does not fit is named."""

from pathlib import Path

import numpy as np
import pytest

from esrjax.pictures.files import read, write
from esrjax.pictures.pairs import Pair, PairMismatch
from esrjax.pictures.resize import crop, downscale
from esrjax.pictures.sets import (
    SetNotFound,
    UnclearSet,
    UnpairedPictures,
    locate,
    pairs,
)

LAYOUTS = [("HR", "LR_bicubic_X4"), ("X_valid_HR", "X_valid_LR"), ("D_HR", "D_LR_bicubic/X4")]
RULE = "a set is HR/ beside LR_bicubic_X4/, or NAME_HR/ beside NAME_LR/, or HR pictures alone"
UNCLEAR = "name the folder of the HR pictures, or leave only one to choose"


def draw(path: Path, height: int, width: int) -> Path:
    write(path, np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    return path


def make(folder: Path, hr: str, lr: str, names: tuple[str, ...] = ("a-b", "a")) -> Path:
    for name in names:
        draw(folder / hr / f"{name}.png", 16, 12)
        draw(folder / lr / f"{name}x4.png", 4, 3)
    return folder


@pytest.mark.parametrize(("hr", "lr"), LAYOUTS)
@pytest.mark.parametrize("given", ["set", "hr"])
def test_hr_and_lr_meet_by_name(tmp_path: Path, hr: str, lr: str, given: str) -> None:
    make(tmp_path, hr, lr)
    found = pairs(tmp_path if given == "set" else tmp_path / hr)
    assert found == tuple(
        Pair(name=name, hr=tmp_path / hr / f"{name}.png", lr=tmp_path / lr / f"{name}x4.png")
        for name in ("a", "a-b")  # as names; "a-b.png" sorts before "a.png"
    )


@pytest.mark.parametrize("hr", ["", "HR", "X_HR"])
@pytest.mark.parametrize("given", ["set", "hr"])
def test_lr_is_made_where_there_is_none(tmp_path: Path, hr: str, given: str) -> None:
    path = draw(tmp_path / "set" / hr / "a.png", 19, 14)
    (pair,) = pairs(tmp_path / "set" if given == "set" else path.parent)
    assert pair == Pair(name="a", hr=path, lr=None)
    lr, hr_pixels = pair.load()
    assert np.array_equal(hr_pixels, read(path).pixels[:16, :12])
    assert np.array_equal(lr, downscale(hr_pixels))


def test_the_lr_of_another_scale_is_another_set(tmp_path: Path) -> None:
    make(tmp_path, "HR", "LR_bicubic_X4")
    draw(tmp_path / "LR_bicubic_X2/ax2.png", 8, 6)
    draw(tmp_path / "LR_bicubic_X2/a-bx2.png", 8, 6)
    for scale in (2, 4):
        lr, hr = pairs(tmp_path, scale)[0].load()
        assert hr.shape == (scale * lr.shape[0], scale * lr.shape[1], 3)
    assert pairs(tmp_path, 3)[0].lr is None


def test_lsdir_lies_in_folders_of_a_thousand(tmp_path: Path) -> None:
    for thousand, name in (("0001000", "0000007"), ("0002000", "0001001")):
        draw(tmp_path / f"HR/{thousand}/{name}.png", 16, 12)
        draw(tmp_path / f"X4/{thousand}/{name}x4.png", 4, 3)
    found = pairs(tmp_path)
    assert [pair.name for pair in found] == ["0000007", "0001001"]
    assert all(pair.lr is not None and pair.load()[0].shape == (4, 3, 3) for pair in found)
    draw(tmp_path / "HR/0003000/0000007.png", 16, 12)
    with pytest.raises(UnclearSet, match=r"0001000/0000007\.png and 0003000/0000007\.png"):
        pairs(tmp_path)


def test_loading_reads_the_lr_file_and_crops_the_hr(tmp_path: Path) -> None:
    hr, lr = draw(tmp_path / "HR/a.png", 18, 15), draw(tmp_path / "LR_bicubic_X4/ax4.png", 4, 3)
    loaded = pairs(tmp_path)[0].load()
    assert np.array_equal(loaded[0], read(lr).pixels)
    assert np.array_equal(loaded[1], crop(read(hr).pixels))


def test_sizes_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    hr, lr = draw(tmp_path / "HR/a.png", 18, 15), draw(tmp_path / "LR_bicubic_X4/ax4.png", 5, 3)
    with pytest.raises(PairMismatch) as caught:
        pairs(tmp_path)[0].load()
    assert str(caught.value) == (
        "the LR picture is 5x3, the cropped HR picture 16x12 (height x width)\n"
        f"  place:  '{hr}' and '{lr}'\n"
        "  rule:   the HR sides, cropped to multiples of 4, are 4 x the LR's\n"
        "  remedy: make the LR picture again, or name the scale it was made for"
    )


@pytest.mark.parametrize("hr", ["", "HR"])
def test_sizes_are_known_from_the_header(tmp_path: Path, hr: str) -> None:
    path = draw(tmp_path / hr / "a.png", 19, 14)
    (pair,) = pairs(tmp_path)
    assert pair.sides() == (4, 3) == pair.load()[0].shape[:2]
    path.write_bytes(path.read_bytes()[:60])
    assert pair.sides() == (4, 3)


def test_an_hr_picture_smaller_than_the_scale_is_named(tmp_path: Path) -> None:
    hr = draw(tmp_path / "a.png", 3, 9)
    with pytest.raises(PairMismatch) as caught:
        pairs(tmp_path)[0].load()
    first, place, *_ = str(caught.value).splitlines()
    assert first == "the LR picture is 0x2, the cropped HR picture 0x8 (height x width)"
    assert place == f"  place:  '{hr}'"


def test_all_partners_that_lack_are_named_at_once(tmp_path: Path) -> None:
    make(tmp_path, "HR", "LR_bicubic_X4")
    for name in "cdefghi":
        draw(tmp_path / f"HR/{name}.png", 16, 12)
    draw(tmp_path / "LR_bicubic_X4/zx4.png", 4, 3)
    draw(tmp_path / "LR_bicubic_X4/c.png", 4, 3)
    with pytest.raises(UnpairedPictures) as caught:
        pairs(tmp_path)
    assert str(caught.value) == (
        f"pictures of '{tmp_path}' have no partner: 7 HR without LR: "
        "c.png, d.png, e.png, f.png, g.png and 2 more; 2 LR without HR: c.png, zx4.png\n"
        "  rule:   the LR picture of NAME is NAMEx4\n"
        "  remedy: add the missing pictures, or remove their partners"
    )


def layouts(folder: Path) -> dict[Path, str]:
    """Folders that are not one set, and why."""
    make(folder / "two", "X_valid_HR", "X_valid_LR")
    make(folder / "two", "X_test_HR", "X_test_LR")
    draw(make(folder / "loose", "HR", "LR") / "a.png", 16, 12)
    draw(make(folder / "lr", "HR", "LR_bicubic_X4") / "LR/ax4.png", 4, 3)
    draw(folder / "alone/LR_bicubic_X4/ax4.png", 4, 3)
    draw(draw(folder / "twice/a.png", 16, 12).with_suffix(".bmp"), 16, 12)
    return {
        folder / "two": "it holds X_test_HR, X_valid_HR",
        folder / "loose": "it holds HR and loose pictures",
        folder / "lr": "beside it lie LR_bicubic_X4, LR",
        folder / "alone": "it holds LR_bicubic_X4 but no HR folder",
        folder / "alone/LR_bicubic_X4": "it is the LR side of a set",
        folder / "two/X_test_LR": "it is the LR side of a set",
        folder / "twice": "it holds a.bmp and a.png",
    }


def test_what_can_be_understood_in_two_ways_is_refused(tmp_path: Path) -> None:
    for folder, reason in layouts(tmp_path).items():
        with pytest.raises(UnclearSet) as caught:
            pairs(folder)
        blamed = folder / "HR" if folder.name == "lr" else folder
        assert str(caught.value) == (
            f"'{blamed}' is not clear: {reason}\n  rule:   {RULE}\n  remedy: {UNCLEAR}"
        )


@pytest.mark.parametrize(
    ("name", "reason"), [("empty", "it holds no pictures"), ("nowhere", "it is no folder")]
)
def test_what_holds_no_pictures_is_no_set(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty/inner").mkdir(parents=True)
    with pytest.raises(SetNotFound) as caught:
        pairs(tmp_path / name)
    assert str(caught.value) == (
        f"'{tmp_path / name}' is not a set: {reason}\n"
        f"  rule:   {RULE}\n"
        "  remedy: name a folder of pictures, or one that holds an HR folder"
    )


def test_a_path_is_located_before_the_users_sets_before_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [tmp_path / "here/Set5", tmp_path / "mine/Set5", tmp_path / "reference/data/Set5"]
    for place in places:
        place.mkdir(parents=True)
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("ESRJAX_REFERENCE", str(tmp_path / "reference"))
    monkeypatch.chdir(tmp_path / "here")
    for place in places:
        assert locate("Set5").resolve() == place
        place.rmdir()


def test_an_unknown_set_tells_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data/DIV2K").mkdir(parents=True)
    (tmp_path / "data/B100").mkdir()
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path / "mine"))
    monkeypatch.setenv("ESRJAX_REFERENCE", str(tmp_path))
    with pytest.raises(SetNotFound) as caught:
        locate("div-2k")
    assert str(caught.value) == (
        "there is no set or folder 'div-2k'\n"
        f"  place:  '{tmp_path / 'mine'}' holds nothing; '{tmp_path / 'data'}' holds B100, DIV2K\n"
        "  rule:   a set is a path, or a folder of $ESRJAX_DATA or of $ESRJAX_REFERENCE/data\n"
        "  remedy: did you mean 'DIV2K'?"
    )
    monkeypatch.delenv("ESRJAX_DATA")
    monkeypatch.delenv("ESRJAX_REFERENCE")
    with pytest.raises(SetNotFound) as caught:
        locate("Set5")
    assert "place:" not in str(caught.value)
    assert str(caught.value).endswith("remedy: give a path, or set ESRJAX_DATA")


@pytest.mark.parametrize(("name", "count"), [("Set5", 5), ("Set14", 14), ("B100", 100)])
def test_the_reference_sets_are_complete(
    reference: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    monkeypatch.setenv("ESRJAX_REFERENCE", str(reference))
    found = pairs(locate(name))
    assert len(found) == count
    assert all(pair.lr is not None for pair in found)
