"""Packed datasets have the same pixels as their source, and are written atomically."""

import numpy as np
import pytest

from esrjax.data import datasets, tfds_writer
from esrjax.data.datasets import Pair
from esrjax.data.image_io import read_image, write_image
from esrjax.errors import NotFound, UnreadableFile, UnwritableFile

SIZES = {"a": (50, 41), "b": (20, 64), "c": (16, 12)}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A dataset of three HR noise images; packed datasets are next to it."""
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path))
    monkeypatch.delenv("ESRJAX_REFERENCE", raising=False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    for seed, (name, size) in enumerate(SIZES.items()):
        noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        write_image(tmp_path / f"photos/{name}.png", noise)
    return tmp_path / "photos"


def pack(photos, **grid):
    pairs = datasets.list_folder_pairs(photos)
    return tfds_writer.pack(pairs, "mine", photos.parent, tfds_writer.SubImageGrid(**grid))


@pytest.mark.parametrize("grid", [{"crop_size": 16, "step": 8}, {"crop_size": 24, "step": 24}, {}])
def test_sub_images_cover_every_image_and_no_more(photos, grid):
    packed = pack(photos, **grid)
    sub_images = datasets.list_pairs("tfds:mine")
    assert packed.num_sub_images == len(sub_images) and packed.num_images == 3
    for name in SIZES:
        lr, hr = Pair(name=name, hr=photos / f"{name}.png").load()
        is_covered, hr_shapes = np.zeros(lr.shape[:2], bool), []
        for pair in (pair for pair in sub_images if pair.name.startswith(name)):
            sub_lr, sub_hr = pair.load()
            assert pair.lr_size() == sub_lr.shape[:2]
            corners = [*_find_all(sub_lr, lr)]
            assert any(
                np.array_equal(sub_hr, _crop_like(hr, sub_hr, 4 * y, 4 * x)) for y, x in corners
            )
            for y, x in corners:
                is_covered[y : y + sub_lr.shape[0], x : x + sub_lr.shape[1]] = True
            hr_shapes.append(sub_hr.shape)
        assert is_covered.all() and len(set(hr_shapes)) == 1


def _find_all(sub_image, image):
    """Yield the corners (y, x) at which an image contains a sub-image."""
    for y in range(image.shape[0] - sub_image.shape[0] + 1):
        for x in range(image.shape[1] - sub_image.shape[1] + 1):
            if np.array_equal(_crop_like(image, sub_image, y, x), sub_image):
                yield y, x


def _crop_like(image, sub_image, y, x):
    return image[y : y + sub_image.shape[0], x : x + sub_image.shape[1]]


def test_subsets_and_splits_of_a_dataset(photos):
    pack(photos, crop_size=16, step=8)
    pairs = datasets.list_pairs("tfds:mine")
    assert datasets.list_pairs("tfds:mine:train[2:5]") == pairs[2:5]
    assert datasets.list_pairs("tfds:mine[50%]") == pairs[::2][: round(len(pairs) / 2)]
    names = ["tfds:mine[:3]", "photos"]
    assert [datasets.dataset_title(name) for name in names] == names


def test_tensorflow_is_not_imported(photos):
    import sys

    pack(photos, crop_size=16, step=8)
    datasets.list_pairs("tfds:mine")[0].load()
    assert "tensorflow" not in sys.modules


def test_dataset_of_another_builder_is_read_in_its_newest_version(photos, monkeypatch, tmp_path):
    """With a configuration, without the metadata of packed datasets, in TFDS's own folder."""
    for version in ("2.0.0", "10.0.0"):
        monkeypatch.setattr(tfds_writer, "VERSION", version)
        monkeypatch.setattr(tfds_writer._Builder, "VERSION", tfds_writer.tfds.core.Version(version))
        monkeypatch.setattr(tfds_writer.tfds.core, "MetadataDict", lambda images: None)
        pack(photos, crop_size=16, step=16)
        (tmp_path / f"mine/{version}").rename(_mkdir(tmp_path / "own/mine/bicubic_x4") / version)
        (tmp_path / "mine").rmdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "own"))
    pair = datasets.list_pairs("tfds:mine/bicubic_x4")[0]
    assert "10.0.0" in pair.hr.folder and pair.name == "0000000"
    assert pair.lr_size() == pair.load()[0].shape[:2]


def _mkdir(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_unreadable_image_leaves_no_partial_dataset(photos):
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:100])
    with pytest.raises(UnreadableFile, match=r"b\.png"):
        pack(photos, crop_size=16, step=8)
    assert [path.name for path in photos.parent.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    "grid", [{"crop_size": 18}, {"crop_size": 16, "step": 32}, {"crop_size": 16, "step": 6}]
)
def test_grid_that_would_not_cover_the_image_is_rejected(photos, grid):
    with pytest.raises(UnwritableFile, match="multiples of 4"):
        pack(photos, **grid)


@pytest.mark.parametrize("name", ["photos", "2k", "a/b", ""])
def test_existing_or_invalid_name_is_rejected(photos, name):
    with pytest.raises(UnwritableFile):
        tfds_writer.pack(
            datasets.list_folder_pairs(photos), name, photos.parent, tfds_writer.SubImageGrid()
        )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tfds:theirs", "'theirs'"),
        ("tfds:", "'tfds:'"),
        ("tfds:mine:valid", "splits are train, not 'valid'"),
    ],
)
def test_missing_dataset_or_split_is_reported_and_not_downloaded(photos, name, reason):
    pack(photos)
    with pytest.raises(NotFound, match=reason) as error:
        datasets.list_pairs(name)
    assert "esrjax data pack" in str(error.value) or "prepare" in str(error.value)


def test_damaged_dataset_is_reported(photos):
    pack(photos)
    (file,) = photos.parent.glob("mine/*/*.array_record*")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(NotFound, match="the dataset cannot be read"):
        datasets.list_pairs("tfds:mine")[0].load()


def test_images_of_a_dataset_are_decoded_as_files_are(photos):
    pack(photos, crop_size=16, step=8)
    pair = datasets.list_pairs("tfds:mine")[0]
    write_image(photos.parent / "out.png", pair.load()[1])
    assert np.array_equal(read_image(photos.parent / "out.png").pixels, pair.hr.decode().pixels)
    assert pair.hr.read_bytes().startswith(b"\x89PNG")
