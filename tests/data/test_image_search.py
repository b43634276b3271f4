"""Search of folders for images: what is taken, what is not and is named, in any tree of files."""

import os
from pathlib import Path

import pytest

from esrjax.data import image_search
from esrjax.data.image_search import search_images
from esrjax.errors import NotFound


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_files_and_folders_are_sorted_without_duplicates(tmp_path):
    touch(tmp_path, "b.png", "a.JPG", "c.webp", "notes.txt")
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    inputs = [tmp_path, tmp_path / "c.webp", tmp_path / "link/b.png", tmp_path / "notes.txt"]
    search = search_images(inputs)
    assert [path.name for path in search.images] == ["a.JPG", "b.png", "c.webp", "notes.txt"]
    assert tmp_path / "notes.txt" not in search.not_taken


def test_every_format_that_is_read_is_taken(tmp_path):
    names = "a.gif b.ppm c.pgm d.jp2 e.jfif f.j2k g.avif h.jpe i.apng j.BMP k.tiff".split()
    touch(tmp_path, *names)
    assert [path.name for path in search_images([tmp_path]).images] == names


def test_what_is_not_taken_is_counted_and_named(tmp_path):
    touch(tmp_path, "a.png", "x.cr2", "noext", ".hidden.png", "sub/b.png", "folder.png/c.png")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "none")
    (tmp_path / "link").symlink_to(tmp_path / "sub", target_is_directory=True)
    os.mkfifo(tmp_path / "fifo.png")
    search = search_images([tmp_path])
    assert [path.name for path in search.images] == ["a.png", "dangling.png"]
    assert {path.name: reason for path, reason in search.not_taken.items()} == {
        "x.cr2": image_search.NOT_AN_IMAGE,
        "noext": image_search.NOT_AN_IMAGE,
        ".hidden.png": image_search.HIDDEN,
        "sub": image_search.FOLDER,
        "folder.png": image_search.FOLDER,
        "link": image_search.FOLDER,
        "fifo.png": image_search.SPECIAL,
    }
    assert any("3 " in note and "folder.png, link, sub" in note for note in search.notes)
    assert len(search.notes) == 4


def test_recursive_search_keeps_folders_and_follows_no_links(tmp_path):
    touch(tmp_path, "in/a.png", "in/x/b.png", "in/x/y/c.png", "in/.git/d.png", "in/z/notes.txt")
    (tmp_path / "in/x/loop").symlink_to(tmp_path / "in", target_is_directory=True)
    search = search_images([tmp_path / "in"], recursive=True)
    folders = {path.name: str(folder) for path, folder in search.images.items()}
    assert folders == {"a.png": ".", "b.png": "x", "c.png": "x/y"}
    reasons = {path.name: reason for path, reason in search.not_taken.items()}
    assert reasons["loop"] == image_search.FOLDER_LINK
    assert reasons[".git"] == image_search.HIDDEN


def test_folder_that_cannot_be_listed_fails_alone(tmp_path, monkeypatch):
    touch(tmp_path, "a.png", "closed/b.png")

    def iterdir(path, original=Path.iterdir):
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    search = search_images([tmp_path], recursive=True)
    assert [path.name for path in search.images] == ["a.png"]
    assert "Permission denied" in search.failures[tmp_path / "closed"].problem


def test_all_missing_paths_are_reported(tmp_path):
    with pytest.raises(NotFound) as caught:
        search_images([tmp_path, tmp_path / "x.png", str(tmp_path / "y"), "b" * 300])
    assert f"'{tmp_path / 'x.png'}', '{tmp_path / 'y'}', 'bbb" in caught.value.problem
    assert f"'{tmp_path}'" not in caught.value.problem
    assert ".jpeg, .jpf, .jpg" in caught.value.rule


def test_no_images_is_reported_with_what_is_there(tmp_path):
    touch(tmp_path, "full/a.png", "empty/notes.txt")
    with pytest.raises(NotFound, match=r"No images in '.*empty'.*notes\.txt"):
        search_images([tmp_path / "empty"])
    with pytest.raises(NotFound, match="empty list"):
        search_images([])
    search = search_images([tmp_path / "empty", tmp_path / "full", tmp_path / "full"])
    assert search.not_taken[tmp_path / "empty"] == image_search.NO_IMAGES
    assert tmp_path / "full" not in search.not_taken
