"""The images of a run: a resumed run has the same ones, or is refused."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from runs import write_images

from esrjax.data.datasets import list_folder_pairs
from esrjax.data.image_io import write_image
from esrjax.errors import CheckpointError
from esrjax.training import recipe_loader, run_data
from esrjax.training.checkpoint import RunDir


def open_run(path: Path, recipe, *, resume: bool) -> dict:
    data = run_data.summarize_data(recipe)
    path.mkdir(exist_ok=True)
    RunDir.open(path, recipe, resume=resume, data=data).write_start(data, range(0))
    return {name: asdict(summary) for name, summary in data.items()}


@pytest.fixture
def recipe(recipe_dict):
    return recipe_loader.parse(recipe_dict)


def test_data_is_kept_in_the_run_and_may_move(tmp_path, recipe, image_dir):
    data = open_run(tmp_path / "run", recipe, resume=False)
    assert json.loads((tmp_path / "run/data.json").read_text()) == data
    assert data[str(image_dir)]["num_images"] == 4
    assert data[str(image_dir)]["lr_source"] == "bicubic from HR"
    image_dir.rename(tmp_path / "elsewhere")
    image_dir.symlink_to(tmp_path / "elsewhere")
    assert open_run(tmp_path / "run", recipe, resume=True) == data


@pytest.mark.parametrize("change", ["missing", "size", "name", "lr"])
def test_resume_with_other_images_is_refused(tmp_path, recipe, image_dir, change):
    open_run(tmp_path / "run", recipe, resume=False)
    first = image_dir / "0.png"
    if change == "missing":
        first.unlink()
    if change == "size":
        first.write_bytes((image_dir / "1.png").read_bytes())
    if change == "name":
        first.rename(image_dir / "new.png")
    if change == "lr":
        write_images(image_dir.parent / "images_LR_X4")
    with pytest.raises(CheckpointError, match=r"data\.json") as caught:
        open_run(tmp_path / "run", recipe, resume=True)
    assert str(image_dir) in caught.value.problem
    expected = {"missing": "4 images in the run, 3 now", "lr": "bicubic from HR"}
    assert expected.get(change, "names or sizes") in caught.value.problem
    (tmp_path / "run/data.json").unlink()
    open_run(tmp_path / "run", recipe, resume=True)


def test_damaged_file_does_not_stop_a_run(tmp_path, recipe):
    open_run(tmp_path / "run", recipe, resume=False)
    for content in ("{", "[]", '{"a": 1}', '{"a": {"b": 2}}'):
        (tmp_path / "run/data.json").write_text(content)
        open_run(tmp_path / "run", recipe, resume=True)


def write_zeros(path: Path, height: int, width: int) -> None:
    write_image(path, np.zeros((height, width, 3), np.uint8))


def test_fingerprint_is_of_names_and_sizes_wherever_they_are(tmp_path: Path) -> None:
    for name in ("a-b", "a"):
        write_zeros(tmp_path / f"one/HR/{name}.png", 16, 12)
        write_zeros(tmp_path / f"one/LR_bicubic_X4/{name}x4.png", 4, 3)
    pairs = list_folder_pairs(tmp_path / "one")
    summary = run_data.summarize(pairs)
    assert (summary.num_images, len(summary.sha256)) == (2, 64)
    (tmp_path / "one").rename(tmp_path / "two")
    assert run_data.summarize(list_folder_pairs(tmp_path / "two")).sha256 == summary.sha256
    hashes = {summary.sha256, run_data.summarize(list_folder_pairs(tmp_path / "two")[:1]).sha256}
    write_zeros(tmp_path / "two/HR/a.png", 17, 12)
    hashes.add(run_data.summarize(list_folder_pairs(tmp_path / "two")).sha256)
    (tmp_path / "two/LR_bicubic_X4").rename(tmp_path / "two/LR_unknown")
    for lr_choice in ("unknown", "bicubic"):
        hashes.add(
            run_data.summarize(list_folder_pairs(tmp_path / "two", lr_choice=lr_choice)).sha256
        )
    assert len(hashes) == 5


def test_images_in_two_datasets_of_a_stage_are_noted(recipe_dict, image_dir):
    (image_dir.parent / "link").symlink_to(image_dir)
    name, stage = str(image_dir), recipe_dict["stage"][0]
    stage["data"]["datasets"] = [f"{name}[:2]", f"{image_dir.parent}/link[1:3]"]
    stage["validation"] = {"dataset": name, "every": 5}
    notes = run_data.overlap_notes(recipe_loader.parse(recipe_dict))
    assert ["1 of 2" in note for note in notes] == [True, False, False]
    assert all("2 of 4" in note and "validation" in note for note in notes[1:])
    stage["data"]["datasets"] = [name]
    (note,) = run_data.overlap_notes(recipe_loader.parse(recipe_dict))
    assert "4 of 4" in note and "'first'" in note
