"""Layouts of dataset folders: pairs of the right files, or an error; never a silent bicubic LR."""

import io
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esrjax.data.datasets import Pair, list_lr_images, list_pairs, lr_source
from esrjax.data.image_io import read_image
from esrjax.errors import DatasetError, UserError, log_note

NUM_DRAWS = 10_000  # of the full campaign
HR_SIDE, LR_SIDE = 8, 2
HR_ROLE, LR_ROLE = 200, 100  # the red channel of an image; green is its folder, blue its name


def write_marked(path: Path, role: int, folder: int = 0, name: int = 0) -> Path:
    """Write an image whose color says what it is."""
    side = HR_SIDE if role == HR_ROLE else LR_SIDE
    stream = io.BytesIO()
    pixels = np.full((side, side, 3), (role, folder, name), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())
    return path


def read_mark(path: Path) -> tuple[int, int, int]:
    return tuple(map(int, read_image(path).pixels[0, 0]))


def write_dataset(folder: Path, hr: str, lr: str) -> Path:
    """Write two pairs; `hr` and `lr` are paths of files with NAME."""
    for index, name in enumerate(("0001", "0002")):
        write_marked(folder / hr.replace("NAME", name), HR_ROLE, name=index)
        write_marked(folder / lr.replace("NAME", name), LR_ROLE, name=index)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A new folder; next to it is nothing, as next to `tmp_path` are those of other tests."""
    return tmp_path / "data"


# --- layouts that people have ---

LAYOUTS = {
    "esrjax": ("HR/NAME.png", "LR_bicubic_X4/NAMEx4.png"),
    "basicsr": ("HR/NAME.png", "LR_bicubic/X4/NAME.png"),
    "basicsr, validation": ("GTmod12/NAME.png", "LRbicx4/NAME.png"),
    "basicsr, mod 4": ("GTmod4/NAME.png", "LRbicx4/NAME.png"),
    "basicsr, GT": ("GT/NAME.png", "LQ/NAME.png"),
    "original": ("original/NAME.png", "LRbicx4/NAME.png"),
    "unknown": ("DIV2K_train_HR/NAME.png", "DIV2K_train_LR_unknown/X4/NAMEx4.png"),
    "bicubic": ("DIV2K_train_HR/NAME.png", "DIV2K_train_LR_bicubic/X4/NAMEx4.png"),
    "mild": ("DIV2K_train_HR/NAME.png", "DIV2K_train_LR_mild/NAMEx4m.png"),
    "difficult": ("DIV2K_train_HR/NAME.png", "DIV2K_train_LR_difficult/NAMEx4d.png"),
    "challenge": ("DIV2K_LSDIR_valid_HR/NAME.png", "DIV2K_LSDIR_valid_LR/NAMEx4.png"),
    "LRx4": ("HR/NAME.png", "LRx4/NAME.png"),
    "LR_x4": ("HR/NAME.png", "LR_x4/NAMEx4.png"),
    "LR_X4": ("HR/NAME.png", "LR_X4/NAME_x4.png"),
    "X4": ("HR/NAME.png", "X4/NAMEx4.png"),
    "lower case": ("hr/NAME.png", "lr/NAME.png"),
    "lsdir": ("HR/0001000/NAME.png", "X4/0001000/NAMEx4.png"),
    "lsdir, train": ("HR/train/0001000/NAME.png", "X4/train/0001000/NAMEx4.png"),
    "selfexsr": ("image_SRF_4/NAME_SRF_4_HR.png", "image_SRF_4/NAME_SRF_4_LR.png"),
    "one folder": ("NAME_HR.png", "NAME_LR.png"),
    "endings": ("HR/NAME_HR_x4.png", "LR/NAME_LRBI_x4.png"),
    "named as the folder": ("Set5/NAME.png", "Set5_LR_bicubic_X4/NAMEx4.png"),
    "next to images": ("images/NAME.png", "LR/NAME.png"),
}
HR_FOLDER_ONLY = {"lsdir, train", "named as the folder", "next to images"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_recognized(folder: Path, layout: str) -> None:
    hr, lr = LAYOUTS[layout]
    write_dataset(folder, hr, lr)
    hr_folder = (folder / hr).parent
    hr_folder = hr_folder.parent if "0001000" in hr else hr_folder
    for name in [hr_folder] + [folder] * (layout not in HR_FOLDER_ONLY):
        pairs = list_pairs(name)
        marks = [(read_mark(pair.hr), read_mark(pair.lr)) for pair in pairs]
        assert marks == [((HR_ROLE, 0, i), (LR_ROLE, 0, i)) for i in range(2)]
        assert lr_source(pairs) == f"read from {(folder / lr).parent}"


def test_wild_track_has_several_lr_images_of_an_hr_image(folder: Path) -> None:
    for index, lr_name in enumerate(("0001x4w1", "0001x4w2", "0002x4w1", "0002x4w2")):
        write_marked(folder / f"T_HR/{lr_name[:4]}.png", HR_ROLE, name=index // 2)
        write_marked(folder / f"T_LR_wild/{lr_name}.png", LR_ROLE, name=index)
    pairs = list_pairs(folder)
    assert [(pair.name, pair.hr.stem, pair.lr.stem) for pair in pairs] == [
        (name, name[:4], name) for name in ("0001x4w1", "0001x4w2", "0002x4w1", "0002x4w2")
    ]
    (folder / "T_LR_wild/0002x4w1.png").unlink()
    with pytest.raises(DatasetError, match=r"1 HR without LR: 0002\.png"):
        list_pairs(folder)


def test_folder_without_images_next_to_images_is_no_lr_folder(folder: Path) -> None:
    """Such as the directory of a training run for x2."""
    write_marked(folder / "images/a.png", HR_ROLE)
    (folder / "x2").mkdir()
    assert [pair.lr for pair in list_pairs(folder / "images", 2)] == [None]
    write_marked(folder / "x2/other.png", LR_ROLE)
    with pytest.raises(DatasetError, match="HR without LR"):
        list_pairs(folder / "images", 2)


def test_gtmod12_is_the_hr_of_basicsr(folder: Path) -> None:
    write_dataset(folder, "GTmod12/NAME.png", "LRbicx4/NAME.png")
    write_dataset(folder, "original/NAME.png", "LRbicx2/NAME.png")
    (pair, _) = list_pairs(folder)
    assert (pair.hr.parent.name, pair.lr.parent.name) == ("GTmod12", "LRbicx4")


# --- what is not clear ---


@pytest.mark.parametrize(
    "lr",
    "X4_shift LR_blur lowres LR-bicubic LR_unknown/X4_sub B_LR trainLR LR_unknown/X2 HR/X4 bicubic "
    "downsampled 4x".split(),
)
def test_lr_folder_that_is_not_understood_is_reported(folder: Path, lr: str) -> None:
    write_dataset(folder, "HR/NAME.png", f"{lr}/NAMEx4.png")
    with pytest.raises(DatasetError) as caught:
        list_pairs(folder)
    assert f"'{folder / 'HR'}'" in caught.value.problem
    assert lr.split("/")[0 if lr.startswith("L") else -1].split("_")[0] in caught.value.problem
    assert "DATASET:bicubic" in caught.value.remedy
    pairs = list_pairs(f"{folder}:bicubic")
    assert lr_source(pairs) == (
        f"read from {folder / 'bicubic'}" if lr == "bicubic" else "bicubic from HR"
    )
    if not lr.endswith("X2"):
        choice = lr.removeprefix("HR/")
        assert lr_source(list_pairs(f"{folder}:{choice}")) == f"read from {folder / lr}"


def test_track_is_chosen_after_a_colon(folder: Path) -> None:
    for track in ("bicubic", "unknown"):
        write_dataset(folder, "T_HR/NAME.png", f"T_LR_{track}/X4/NAMEx4.png")
    with pytest.raises(DatasetError, match=r"T_LR_bicubic/X4, T_LR_unknown/X4") as caught:
        list_pairs(folder)
    assert "DATASET:unknown" in caught.value.remedy
    lr_folder = folder / "T_LR_unknown/X4"
    for choice in ("unknown", "T_LR_unknown", "T_LR_unknown/X4", str(lr_folder)):
        for dataset in (folder, folder / "T_HR"):
            (pair,) = list_pairs(f"{dataset}:{choice}[:1]")
            assert pair.lr == lr_folder / "0001x4.png"
    for choice, problem in {"mild": "mild", "T_LR_unknown/X2": "X2", "": ":'"}.items():
        with pytest.raises(UserError, match=problem):
            list_pairs(f"{folder}:{choice}")


@pytest.mark.parametrize("lr", ["DIV2K_train_LR_bicubic/X{}", "DIV2K_train_LR_bicubic_X{}"])
@pytest.mark.parametrize("rest", ["_sub", "_sub480", "_multiscale"])
def test_cut_copies_have_cut_lr_images(folder: Path, lr: str, rest: str) -> None:
    """As BasicSR's extract_subimages.py writes them, beside what they are cut from."""
    for scale in (2, 4):
        write_dataset(folder, "DIV2K_train_HR/NAME.png", f"{lr.format(scale)}/NAMEx{scale}.png")
        cut = f"{lr.format(scale)}{rest}/NAME_s001.png"
        write_dataset(folder, f"DIV2K_train_HR{rest}/NAME_s001.png", cut)
    for name, end in ((folder / f"DIV2K_train_HR{rest}", rest), (folder / "DIV2K_train_HR", "")):
        for scale in (2, 4):
            source = f"read from {folder / lr.format(scale)}{end}"
            assert lr_source(list_pairs(name, scale)) == source
    assert list_pairs(folder)[0].hr.parent.name == "DIV2K_train_HR"


def test_cut_copy_alone_is_a_dataset(folder: Path) -> None:
    write_dataset(folder, "T_HR_sub/NAME_s001.png", "T_LR_bicubic/X4_sub/NAME_s001.png")
    assert lr_source(list_pairs(folder)) == f"read from {folder / 'T_LR_bicubic/X4_sub'}"


@pytest.mark.parametrize(
    "lr", ["T_LR_unknown/X4", "T_LR_x4", "T_LR_x4_crop", "T_LR_unknown/X2_sub"]
)
def test_cut_copy_without_cut_lr_is_reported(folder: Path, lr: str) -> None:
    write_dataset(folder, "T_HR_sub/NAME.png", f"{lr}/NAME.png")
    write_dataset(folder, "T_HR/NAME.png", f"{lr}/NAME.png")
    with pytest.raises(DatasetError, match="T_HR_sub"):
        list_pairs(folder / "T_HR_sub")


def test_lr_of_another_hr_folder_is_not_used(folder: Path) -> None:
    write_dataset(folder, "T_train_HR/NAME.png", "T_train_LR/NAMEx4.png")
    write_dataset(folder, "T_valid_HR/NAME.png", "T_valid_LR/NAMEx4.png")
    for split in ("train", "valid"):
        pairs = list_pairs(folder / f"T_{split}_HR")
        assert lr_source(pairs) == f"read from {folder / f'T_{split}_LR'}"


@pytest.mark.parametrize("lr", ["LR_bicubic/X2/NAMEx2.png", "LRx2/NAME.png", "X2/NAME.png"])
def test_lr_of_another_scale_is_not_used_with_a_note(
    folder: Path, lr: str, caplog: pytest.LogCaptureFixture
) -> None:
    log_note.cache_clear()
    write_dataset(folder, "HR/NAME.png", lr)
    assert lr_source(list_pairs(folder, 2)) == f"read from {(folder / lr).parent}"
    assert not caplog.messages
    assert lr_source(list_pairs(folder, 4)) == "bicubic from HR"
    (note,) = caplog.messages
    assert "LR folders of scale 2 not used" in note and str(folder / "HR") in note


@pytest.mark.parametrize(
    "names",
    "a_LR b_LR,0001x4 0002,a ax4,ax4 bx4,a_x4 b,a_lr_x4 b,a_HR b_LR,a_HR a_LR b,0001x4w2".split(
        ","
    ),
)
def test_files_with_names_of_lr_images_are_not_taken_for_hr(folder: Path, names: str) -> None:
    for parent in ("photos", "HR"):
        for name in names.split():
            write_marked(folder / parent / f"{name}.png", LR_ROLE)
        with pytest.raises(DatasetError) as caught:
            list_pairs(folder / parent)
        assert any(name in caught.value.problem for name in names.split())


def test_hr_names_that_only_end_in_x4_are_accepted(folder: Path) -> None:
    for name in ("matrix4", "photo"):
        write_marked(folder / f"{name}.png", HR_ROLE)
    assert len(list_pairs(folder)) == 2
    write_marked(folder / "alone/matrix4.png", HR_ROLE)
    assert lr_source(list_pairs(f"{folder / 'alone'}:bicubic")) == "bicubic from HR"


# --- without HR ---


@pytest.mark.parametrize(
    ("lr", "dataset"),
    [
        ("LR/NAMEx4.png", ""),
        ("LR/NAMEx4.png", "LR"),
        ("T_LR_unknown/X4/NAME.png", "T_LR_unknown"),
        ("photos/NAME_LR.png", "photos"),
        ("LR_X4/NAME.png", ""),
    ],
)
def test_lr_images_without_hr_are_listed_but_are_no_pairs(
    folder: Path, lr: str, dataset: str
) -> None:
    for name in ("0001", "0002"):
        write_marked(folder / lr.replace("NAME", name), LR_ROLE)
    images = list_lr_images(folder / dataset)
    assert [image.name for image in images] == ["0001", "0002"]
    assert images[0].load_lr().shape == (LR_SIDE, LR_SIDE, 3)
    assert lr_source(images) == f"read from {(folder / lr).parent}"
    assert list_lr_images(f"{folder / dataset}[:1]") == images[:1]
    with pytest.raises(DatasetError):
        list_pairs(folder / dataset)


def test_dataset_with_hr_is_listed_as_pairs(folder: Path) -> None:
    write_dataset(folder, "HR/NAME.png", "LR/NAME.png")
    assert list_lr_images(folder) == list_pairs(folder)
    with pytest.raises(DatasetError, match="several LR folders"):
        shutil.rmtree(folder / "HR")
        write_marked(folder / "LR_X4/a.png", LR_ROLE)
        list_lr_images(folder)


# --- drawn folder trees ---

# Folders of HR, of LR, of names that only look like LR, of LR of other scales, and others. {p} is
# the prefix of the HR folder.
HR_FOLDERS = "HR hr Hr GT gt GTmod12 GTmod4 original".split()
KNOWN_LR = (
    "{p}LR {p}lr {p}LQ {p}LR_bicubic_X4 {p}LR_bicubic/X4 {p}LR_unknown/X4 {p}lr_unknown/x4 "
    "{p}LR_mild {p}LR_wild {p}LR_difficult/X4 {p}LRx4 {p}LR_x4 {p}LRbicx4 {p}LR_X4 {p}LRBIX4 X4 x4 "
    "{p}LR_unknown_X4 {p}Lr_Bicubic_x4 LR lrX4"
).split()
LIKE_LR = (
    "X4_shift {p}LR_X4_aug LR-bicubic {p}LR_blur lowres {p}LowRes LRDN {p}trainLR 4x LR.x4 X4_sub "
    "low_quality downsampled {p}LR_unknown/X4_shift {p}bicubic {p}LQ_new {p}lr2 x4_lr B_LR_X4 "
    "degraded {p}LR_old/X4 LRbicubic_X4_old"
).split()
OTHER_SCALE = "{p}LR_bicubic_X2 X2 {p}LRx3 {p}LR_bicubic/X2 {p}LR/X3 {p}LRbicx8".split()
OTHER_TRACK = "{p}LR_unknown/X2 {p}LR_mild_X2 {p}LR_wild/X8".split()
NEUTRAL = "SR results masks notes spanv2 text".split()
# Names of LR files; the second row is not of any convention.
KNOWN_NAMES = "{n}x4 {n} {n}_x4 {n}_LR {n}x4m {n}x4d {n}x4w {n}X4".split()
WRONG_NAMES = "{n}_lowres x4_{n} {n}x2 {n}x44 {n}_small".split()


@dataclass
class Tree:
    """A drawn dataset, and what is known about it because it was drawn so.

    Attributes:
        path: What is listed.
        choice: The chosen LR folder or track, or None.
        lr_folders: The folder of the LR images of every LR folder of the scale, by marker.
        num_hr: Number of HR images.
        has_lr: Whether bicubic LR would take the place of other LR images, if it is not chosen.
        is_clear: Whether everything follows the documentation.
    """

    path: Path
    choice: str | None = None
    lr_folders: dict[int, Path] = field(default_factory=dict)
    num_hr: int = 0
    has_lr: bool = False
    is_clear: bool = True


def draw_tree(rng: random.Random, base: Path) -> Tree:
    """Write the files of a drawn dataset."""
    prefix = rng.choice(["", "", "DIV2K_train_", "Set5-", "x_"])
    hr_name = prefix + rng.choice(HR_FOLDERS)
    root = base / "data" / rng.choice(["DIV2K", "photos", "Set5", "my_hr", "x4"])
    layout = rng.choice(["folders"] * 6 + ["images", "pair folder"])
    tree = Tree(path=root)
    hr_folder = root / hr_name
    if layout == "images":
        hr_folder, prefix, tree.path = root / "images", "images_", root / "images"
    elif layout == "pair folder":
        hr_folder = rng.choice([root, root / "image_SRF_4", root / hr_name])
        tree.path = hr_folder
    elif rng.random() < 0.4:
        tree.path = hr_folder
    if tree.path.name == "x4":
        tree.is_clear = False
    names = rng.sample(["0001", "baby", "img_007", "a-b", "tree2", "matrix4"], rng.randint(2, 4))
    hr_ending = "_HR" if layout == "pair folder" else rng.choice(["", "", "", "_HR"])
    for index, name in enumerate(names):
        write_marked(hr_folder / f"{name}{hr_ending}.png", HR_ROLE, name=index)
    tree.num_hr = len(names)
    if layout == "pair folder":
        draw_lr(rng, tree, hr_folder, "{n}_LR", names, marker=1)
    for marker in range(2, 2 + rng.choice([0, 1, 1, 1, 1, 2, 3])):
        draw_lr_folder(rng, tree, hr_folder, prefix, names, hr_ending, marker)
    if rng.random() < 0.1:  # another dataset in the same folder
        write_marked(root / f"other_{rng.choice(HR_FOLDERS)}/0001.png", HR_ROLE, folder=9)
        write_marked(root / f"other_{rng.choice(['LR', 'LR_X4', 'LRx4'])}/0001.png", LR_ROLE, 9)
        tree.is_clear &= tree.path == hr_folder != root
    if rng.random() < 0.25:
        folders = [str(path.relative_to(hr_folder.parent)) for path in tree.lr_folders.values()]
        tree.choice = rng.choice(["bicubic", "unknown", "mild", "nothing", *folders])
        tree.is_clear = False
    return tree


def draw_lr_folder(
    rng: random.Random,
    tree: Tree,
    hr_folder: Path,
    prefix: str,
    names: list[str],
    hr_ending: str,
    marker: int,
) -> None:
    """Write a folder next to the HR folder."""
    vocabularies = [KNOWN_LR, KNOWN_LR, KNOWN_LR, LIKE_LR, OTHER_SCALE, OTHER_TRACK, NEUTRAL]
    vocabulary = rng.choice(vocabularies)
    name = rng.choice(vocabulary).format(p=prefix)
    folder = hr_folder.parent / name
    if (hr_folder.parent / name.split("/")[0]).exists():
        return
    convention = rng.choice(KNOWN_NAMES)
    if hr_ending:
        convention = rng.choice(["{n}_LR", "{n}", "{n}_LR_x4"])
    if rng.random() < 0.1:
        convention, tree.is_clear = rng.choice(WRONG_NAMES), False
    is_hr_name = hr_folder.name.removeprefix(prefix) in HR_FOLDERS
    is_same_prefix = name.startswith(prefix if is_hr_name else hr_folder.name)
    if vocabulary is KNOWN_LR and (is_same_prefix or convention not in WRONG_NAMES):
        tree.is_clear &= is_same_prefix
        draw_lr(rng, tree, folder, convention, names, marker)
        return
    for index, stem in enumerate(names):
        write_marked(folder / f"{convention.format(n=stem)}.png", LR_ROLE, marker, index)
    # Next to a folder of any name, a folder that only looks like LR counts if it has its names.
    is_unrelated = convention in WRONG_NAMES and not is_same_prefix
    if vocabulary is LIKE_LR and not is_unrelated:
        tree.lr_folders[marker] = folder
        tree.has_lr, tree.is_clear = True, False
    if vocabulary is OTHER_TRACK:
        tree.has_lr, tree.is_clear = True, False
    tree.is_clear &= vocabulary is not OTHER_SCALE or is_same_prefix


def draw_lr(
    rng: random.Random, tree: Tree, folder: Path, convention: str, names: list[str], marker: int
) -> None:
    """Write LR images, sometimes with a missing, an additional or a differently named one."""
    stems = {convention.format(n=name): index for index, name in enumerate(names)}
    fault = rng.choice(["none"] * 8 + ["missing", "additional", "other name"])
    if fault != "none":
        tree.is_clear = False
    first = next(iter(stems))
    if fault == "missing":
        del stems[first]
    if fault == "other name":
        stems[rng.choice(KNOWN_NAMES).format(n=names[0])] = stems.pop(first)
    if fault == "additional":
        stems[convention.format(n="more")] = 77
    for stem, index in stems.items():
        write_marked(folder / f"{stem}.png", LR_ROLE, marker, index)
    tree.is_clear &= not tree.lr_folders  # several
    tree.lr_folders[marker], tree.has_lr = folder, True


def check_pairs(tree: Tree, pairs: tuple[Pair, ...]) -> None:
    """Assert by their colors that the pairs are right."""
    hr_marks = [read_mark(pair.hr) for pair in pairs]
    assert {mark[:2] for mark in hr_marks} == {(HR_ROLE, 0)}, "other images are taken for HR"
    assert sorted(mark[2] for mark in hr_marks) == list(range(tree.num_hr))
    if pairs[0].lr is None:
        assert all(pair.lr is None for pair in pairs)
        assert tree.choice == "bicubic" or not tree.has_lr, "a silent bicubic"
        assert lr_source(pairs) == "bicubic from HR"
        return
    lr_marks = [read_mark(pair.lr) for pair in pairs]
    (marker,) = {mark[1] for mark in lr_marks}
    assert [mark[2] for mark in lr_marks] == [mark[2] for mark in hr_marks]
    assert {mark[0] for mark in lr_marks} == {LR_ROLE}
    folder = tree.lr_folders[marker]
    assert lr_source(pairs) == f"read from {folder}"
    if tree.choice is None:
        assert len(tree.lr_folders) == 1, "one of several LR folders was chosen"
    elif tree.choice in ("bicubic", "unknown", "mild"):
        assert tree.choice[:3] in str(folder).lower() or "BI" in str(folder)
    else:
        assert tree.choice in str(folder)


def run_draws(base: Path, count: int) -> dict[str, int]:
    """Check drawn trees, and return how many were listed, how many refused."""
    counts = {"pairs": 0, "bicubic": 0, "refused": 0}
    for seed in range(count):
        folder = base / f"{seed}"
        tree = draw_tree(random.Random(seed), folder)
        name = f"{tree.path}:{tree.choice}" if tree.choice else str(tree.path)
        try:
            pairs = list_pairs(name)
        except UserError as error:
            assert not tree.is_clear, f"seed {seed}: {error}"
            assert error.problem and error.rule and error.remedy
            counts["refused"] += 1
        else:
            try:
                check_pairs(tree, pairs)
            except AssertionError as error:
                listing = [str(path.relative_to(folder)) for path in folder.rglob("*.png")]
                raise AssertionError(f"seed {seed}, {name}: {listing}") from error
            counts["pairs" if pairs[0].lr else "bicubic"] += 1
        shutil.rmtree(folder)
    return counts


def test_drawn_folders_give_the_right_pairs_or_an_error(tmp_path: Path) -> None:
    counts = run_draws(tmp_path, 100)
    assert min(counts.values()) > 5


@pytest.mark.slow
def test_many_drawn_folders_give_the_right_pairs_or_an_error(tmp_path: Path) -> None:
    counts = run_draws(tmp_path, NUM_DRAWS)
    print(counts)
    assert sum(counts.values()) == NUM_DRAWS
