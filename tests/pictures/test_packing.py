"""A packed set is the set: the same pixels, found by name, whole or not there at all."""

import numpy as np
import pytest

from esrjax.pictures import packing, sets
from esrjax.pictures.files import UnreadablePicture, read, write
from esrjax.pictures.pairs import Pair
from esrjax.pictures.records import DatasetNotFound

SIDES = {"a": (50, 41), "b": (20, 64), "c": (16, 12)}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A set of three noisy HR pictures; datasets are looked for beside it."""
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    for seed, (name, sides) in enumerate(SIDES.items()):
        noise = np.random.default_rng(seed).integers(0, 256, (*sides, 3), np.uint8)
        write(tmp_path / f"photos/{name}.png", noise)
    return tmp_path / "photos"


def packed(photos, **cut):
    return packing.pack(sets.pairs(photos), "mine", photos.parent, packing.Cut(**cut))


@pytest.mark.parametrize("cut", [{"side": 16, "step": 8}, {"side": 24, "step": 24}, {}])
def test_sub_images_cover_every_picture_and_no_more(photos, cut):
    made = packed(photos, **cut)
    found = sets.select("tfds:mine")
    assert made.pieces == len(found) and made.pictures == 3
    for name in SIDES:
        lr, hr = Pair(name=name, hr=photos / f"{name}.png").load()
        pieces = [pair for pair in found if pair.name.startswith(name)]
        small, large = np.zeros(lr.shape[:2], bool), []
        for pair in pieces:
            ours, theirs = pair.load()
            assert pair.sides() == ours.shape[:2]
            places = [*_places(ours, lr)]
            assert any(np.array_equal(theirs, _at(hr, theirs, 4 * y, 4 * x)) for y, x in places)
            for y, x in places:
                small[y : y + ours.shape[0], x : x + ours.shape[1]] = True
            large.append(theirs.shape)
        assert small.all() and len(set(large)) == 1


def _places(piece, whole):
    """Where a piece lies in a picture."""
    for y in range(whole.shape[0] - piece.shape[0] + 1):
        for x in range(whole.shape[1] - piece.shape[1] + 1):
            if np.array_equal(_at(whole, piece, y, x), piece):
                yield y, x


def _at(whole, piece, y, x):
    return whole[y : y + piece.shape[0], x : x + piece.shape[1]]


def test_parts_and_splits_of_a_dataset(photos):
    packed(photos, side=16, step=8)
    whole = sets.select("tfds:mine")
    assert sets.select("tfds:mine:train[2:5]") == whole[2:5]
    assert sets.select("tfds:mine[50%]") == whole[::2][: round(len(whole) / 2)]
    assert [sets.title(name) for name in ("tfds:mine[:3]", "photos")] == ["tfds:mine[:3]", "photos"]


def test_tensorflow_is_not_needed(photos):
    import sys

    packed(photos, side=16, step=8)
    sets.select("tfds:mine")[0].load()
    assert "tensorflow" not in sys.modules


def test_a_dataset_of_tfds_itself(photos, monkeypatch, tmp_path):
    """Another builder's, with a configuration, an `lr` of its own and JPEGs; its newest version."""
    for version in ("2.0.0", "10.0.0"):
        monkeypatch.setattr(packing, "VERSION", version)
        monkeypatch.setattr(packing._Builder, "VERSION", packing.tfds.core.Version(version))
        monkeypatch.setattr(packing.tfds.core, "MetadataDict", lambda pictures: None)
        packed(photos, side=16, step=16)
        (tmp_path / f"mine/{version}").rename(_made(tmp_path / "own/mine/bicubic_x4") / version)
        (tmp_path / "mine").rmdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))
    found = sets.select("tfds:mine/bicubic_x4")
    assert "10.0.0" in found[0].hr.folder and found[0].name == "0000000"
    assert found[0].sides() == found[0].load()[0].shape[:2]


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_nothing_is_left_of_a_set_that_cannot_be_read(photos):
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:100])
    with pytest.raises(UnreadablePicture, match=r"b\.png"):
        packed(photos, side=16, step=8)
    assert [path.name for path in photos.parent.iterdir()] == ["photos"]


@pytest.mark.parametrize("cut", [{"side": 18}, {"side": 16, "step": 32}, {"side": 16, "step": 6}])
def test_cuts_that_would_leave_pixels_out_are_refused(photos, cut):
    with pytest.raises(packing.Unpackable, match="multiples of 4"):
        packed(photos, **cut)


@pytest.mark.parametrize("name", ["photos", "2k", "a/b", ""])
def test_a_name_that_is_taken_or_none(photos, name):
    with pytest.raises(packing.Unpackable):
        packing.pack(sets.pairs(photos), name, photos.parent, packing.Cut())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tfds:theirs", "there is no dataset 'theirs'"),
        ("tfds:", "no name of a dataset"),
        ("tfds:mine:valid", "its splits are train, not 'valid'"),
    ],
)
def test_a_dataset_that_is_not_there_is_told_and_not_fetched(photos, name, said):
    packed(photos)
    with pytest.raises(DatasetNotFound, match=said) as error:
        sets.select(name)
    assert "esrjax data pack" in str(error.value) or "prepare" in str(error.value)


def test_a_damaged_dataset_is_told(photos):
    packed(photos)
    (file,) = photos.parent.glob("mine/*/*.array_record*")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DatasetNotFound, match="the dataset cannot be read"):
        sets.select("tfds:mine")[0].load()


def test_records_are_also_read_where_files_are(photos):
    packed(photos, side=16, step=8)
    pair = sets.select("tfds:mine")[0]
    write(photos.parent / "out.png", pair.load()[1])
    assert np.array_equal(read(photos.parent / "out.png").pixels, pair.hr.picture().pixels)
    assert pair.hr.read_bytes().startswith(b"\x89PNG")
