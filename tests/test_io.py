"""Reads that are bounded; outputs that are no input and can be written; names of any length."""

import os
from pathlib import Path

import pytest

from esrjax.errors import UnreadableFile, UnwritableFile, run_and_report_errors
from esrjax.io import (
    atomic_write,
    check_outputs,
    check_writable,
    clear_leftovers,
    parse_json,
    parse_toml,
    read_bytes,
    write_bytes,
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An input file, with other names and paths for it beside it."""
    path = tmp_path / "a/photo.png"
    path.parent.mkdir()
    path.write_bytes(b"input")
    (tmp_path / "symlink.png").symlink_to(path)
    (tmp_path / "to_link.png").symlink_to(tmp_path / "symlink.png")
    os.link(path, tmp_path / "hardlink.png")
    (tmp_path / "folder_link").symlink_to(path.parent, target_is_directory=True)
    return path


NAMES = ("a/photo.png", "a/../a/photo.png", "folder_link/photo.png")
LINKS = ("symlink.png", "to_link.png", "hardlink.png")


@pytest.mark.parametrize("name", NAMES + LINKS)
def test_output_that_is_an_input_is_refused(tmp_path, source, name):
    with pytest.raises(UnwritableFile) as caught:
        check_outputs([tmp_path / "new.png", tmp_path / name], [tmp_path / "none", None, source])
    assert f"'{tmp_path / name}'" in caught.value.problem
    assert caught.value.location == str(source)


@pytest.mark.parametrize("name", (*NAMES, "symlink.png", "to_link.png"))
def test_output_in_an_input_folder_is_refused(tmp_path, source, name):
    with pytest.raises(UnwritableFile):
        check_outputs([tmp_path / name], [source.parent])


def test_other_outputs_are_accepted(tmp_path, source):
    other = tmp_path / "a/below/photo.png"
    write_bytes(other, b"")
    check_outputs([other, tmp_path / "a/new.png"], [source, source.parent])
    check_outputs([source], [other, tmp_path / "none"])


def test_relative_and_absolute_paths_are_the_same_file(monkeypatch, source):
    monkeypatch.chdir(source.parent)
    with pytest.raises(UnwritableFile):
        check_outputs([Path("photo.png")], [source])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a", "it is a folder"),
        ("a/photo.png/x.png", "a/photo.png' is not a folder"),
        ("new/" + "b" * 252 + ".png", "256 bytes"),
        ("é" * 126 + ".png", "256 bytes"),
        ("fifo", "it is not a file"),
        ("dangling/x.png", "dangling' is not a folder"),
    ],
)
def test_path_that_cannot_be_written_is_refused(tmp_path, source, name, reason):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    with pytest.raises(UnwritableFile) as caught:
        check_writable(tmp_path / name)
    assert reason in caught.value.problem
    assert not (tmp_path / "new").exists()


def test_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may always
    with pytest.raises(UnwritableFile) as caught:
        check_writable(tmp_path / "new/x.png")
    assert f"'{tmp_path}'" in caught.value.problem


@pytest.mark.parametrize("name", ["x.png", "new/sub/x.png", "b" * 251 + ".png", "é" * 125 + ".png"])
def test_accepted_path_can_be_written(tmp_path, name):
    check_writable(tmp_path / name)
    write_bytes(tmp_path / name, b"new")
    check_writable(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"new"
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_error_about_a_path_has_no_traceback(capsys):
    assert run_and_report_errors(lambda: print(Path("b" * 300).exists())) == 2
    error = capsys.readouterr().err
    assert "b" * 300 in error and "File name too long" in error and "remedy" in error
    with pytest.raises(OSError, match="unrelated"):
        run_and_report_errors(lambda: (_ for _ in ()).throw(OSError("unrelated")))


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_only_regular_files_are_read(tmp_path, make):
    make(tmp_path / "input")
    with pytest.raises(UnreadableFile, match="input"):
        read_bytes(tmp_path / "input")


def test_no_more_bytes_are_read_than_allowed(tmp_path):
    (tmp_path / "input").write_bytes(bytes(101))
    assert read_bytes(tmp_path / "input", 101) == bytes(101)
    with pytest.raises(UnreadableFile, match="100"):
        read_bytes(tmp_path / "input", 100)


@pytest.mark.parametrize(
    "parse, text",
    [
        (parse_json, "[" * 65 + "]" * 65),
        (parse_json, "[" * 100_000),
        (parse_toml, "a = " + "[" * 100_000),
        (parse_toml, "a." * 65 + "a = 1"),
        (parse_toml, "a." * 501 + "a = 1"),
        (parse_toml, "#" * 300_000),
    ],
)
def test_deep_and_long_documents_are_refused(parse, text):
    with pytest.raises(ValueError):
        parse(text)


def test_documents_of_the_usual_depth_are_parsed():
    assert parse_json("[" * 64 + "]" * 64) and parse_toml("a.b = [{c = 1}]")["a"]


def test_file_and_folder_are_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace

    def record_fsync(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", lambda *args: (events.append("rename"), replace(*args)))
    with atomic_write(tmp_path / "x") as partial:
        partial.mkdir()
        (partial / "a").write_text("")
    assert events == ["a", partial.name, "rename", tmp_path.name]


def test_leftovers_of_killed_processes_are_deleted(tmp_path):
    for name in (".x.png.0a1b.partial", ".6.partial.orbax-checkpoint-tmp/d/a", "x.partial", ".x"):
        write_bytes(tmp_path / name, b"")
    clear_leftovers(tmp_path)
    clear_leftovers(tmp_path / "nothing")
    assert sorted(os.listdir(tmp_path)) == [".x", "x.partial"]
