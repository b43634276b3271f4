"""What is wrong with a set is found before anything is trained on it; what is right is not."""

import numpy as np
import pytest
from PIL import Image

from esrjax.pictures.files import read, write
from esrjax.pictures.known import known
from esrjax.pictures.resize import downscale, upscale
from esrjax.pictures.sets import pairs
from esrjax.pictures.verification import verify


def noise(seed, height=48, width=56):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return upscale(coarse)


@pytest.fixture
def folder(tmp_path):
    """A right set of three pairs."""
    for seed, name in enumerate("abc"):
        hr = noise(seed)
        write(tmp_path / f"mine/HR/{name}.png", hr)
        write(tmp_path / f"mine/LR_bicubic_X4/{name}x4.png", downscale(hr))
    return tmp_path / "mine"


def test_a_right_set_is_right(folder):
    verdict = verify(pairs(folder))
    assert (verdict.problems, verdict.notes) == ((), ())
    assert (verdict.pictures, verdict.smallest, verdict.off) == (3, (48, 56), 0)


def damaged(path, hr):
    path.write_bytes(path.read_bytes()[:100])


def of_another_size(path, hr):
    write(path, hr[:8, :8])


def shifted(path, hr):
    lr = read(path).pixels
    lr[5, 5] ^= 8
    write(path, lr)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damaged, "cannot be read"),
        (of_another_size, "the LR picture is 8x8, the cropped HR picture 48x56"),
        (shifted, "LR is up to 8 grey levels off the bicubic one"),
    ],
)
def test_a_wrong_pair_is_named(folder, harm, said):
    harm(folder / "LR_bicubic_X4/bx4.png", read(folder / "HR/b.png").pixels)
    (problem,) = verify(pairs(folder)).problems
    assert said in problem and (problem.startswith("b: "))
    assert not verify(pairs(folder)[:1]).problems


def test_the_outer_pixels_of_lr_are_not_compared_and_the_rest_within_a_tolerance(folder):
    path = folder / "LR_bicubic_X4/ax4.png"
    lr = read(path).pixels
    lr[0] ^= 8
    lr[5, 5] ^= 4
    write(path, lr)
    assert not verify(pairs(folder), tolerance=4).problems
    assert verify(pairs(folder), tolerance=3).problems


def test_deep_pictures_are_wrong_and_palettes_worth_a_note(folder):
    Image.fromarray(np.full((48, 56), 40_000, np.uint16)).save(folder / "HR/b.png")
    image = Image.fromarray(read(folder / "HR/c.png").pixels).quantize(256)
    image.save(folder / "HR/c.png")
    verdict = verify(pairs(folder), tolerance=255)
    assert verdict.problems == ("b: HR is not of 8 bits: 16 bits per channel rounded to 8",)
    assert "c: palette looked up" in verdict.notes
    Image.fromarray(np.full((12, 14), 40_000, np.uint16)).save(folder / "LR_bicubic_X4/ax4.png")
    verdict = verify(pairs(folder)[:1], tolerance=255)
    assert verdict.problems == ("a: LR is not of 8 bits: 16 bits per channel rounded to 8",)
    assert "a: LR: grey repeated in three channels" in verdict.notes


def test_pictures_of_the_validation_set_are_found(folder, tmp_path):
    valid = tmp_path / "valid"
    hr = read(folder / "HR/b.png").pixels
    write(valid / "same.png", hr)
    write(valid / "other.png", noise(9))
    write(valid / "brighter.png", read(folder / "HR/c.png").pixels // 2 + 64)
    verdict = verify(pairs(folder), against=pairs(valid))
    assert verdict.problems == ("b: the same picture as same of the validation set",)
    assert verdict.notes == ("c: looks like brighter of the validation set",)


def test_a_picture_that_is_there_twice_is_noted(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.png", noise(0))
    assert verify(pairs(tmp_path)).notes == ("a, b: the same picture",)


def test_known_sets_are_held_against_what_is_known(tmp_path):
    for name in ("baby", "bird", "butterfly", "Woman"):
        write(tmp_path / f"Set5/HR/{name}.png", noise(len(name)))
    assert verify(pairs(tmp_path / "Set5"), known=known("data/Set5")).problems[:3] == (
        "Set5 has 5 pictures, here are 4",
        "missing: head, woman",
        "not of Set5: Woman",
    )


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("DIV2K", "DIV2K, training"),
        ("DIV2K/DIV2K_train_HR", "DIV2K, training"),
        ("x/DIV2K_valid_HR", "DIV2K, validation"),
        ("LSDIR/HR", "LSDIR, training"),
        ("Flickr2K", "Flickr2K"),
        ("DIV2K_LSDIR_valid_HR", "NTIRE's DIV2K and LSDIR, validation"),
        ("BSD100", "B100"),
        ("LSDIR[:100]", None),
        ("tfds:div2k", None),
        ("holidays", None),
    ],
)
def test_sets_are_known_by_the_names_they_have(name, title):
    found = known(name)
    assert (found and found.title) == title


@pytest.mark.parametrize("name", ["Set5", "Set14", "B100"])
def test_the_reference_sets_are_right(reference, name):
    folder = reference / "data" / name
    verdict = verify(pairs(folder)[:14], known=known(name) if name != "B100" else None)
    assert (verdict.problems, verdict.notes, verdict.off) == ((), (), 0)
