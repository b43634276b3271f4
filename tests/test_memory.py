"""Commands start again with large pages, once, where the system has them and nobody said other."""

import os
import subprocess
import sys

import pytest

from esrjax import memory


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What was started in place of this process, on a system that gives large pages when asked."""
    calls = []
    system = tmp_path / "enabled"
    system.write_text("always [madvise] never\n")
    monkeypatch.setattr(memory, "SYSTEM", system)
    monkeypatch.setattr(memory.os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(memory.os, "execv", lambda *call: calls.append(call))
    monkeypatch.setattr(memory.os, "environ", {})
    monkeypatch.setattr(memory.sys, "orig_argv", ["python3", "-m", "esrjax", "list"])
    return calls


def test_the_same_command_is_started_again_once(started):
    memory.take_large_pages()
    assert started == [(sys.executable, [sys.executable, "-m", "esrjax", "list"])]
    assert memory.large_pages()
    memory.take_large_pages()
    assert len(started) == 1


@pytest.mark.parametrize("said", ["", "glibc.malloc.arena_max=1"])
def test_what_the_environment_says_stands(started, said):
    memory.os.environ["GLIBC_TUNABLES"] = said
    memory.take_large_pages()
    assert not started and not memory.large_pages()


@pytest.mark.parametrize("pages", ["[always] madvise never", "always madvise [never]"])
def test_a_system_that_always_or_never_gives_them_is_not_asked(started, pages):
    memory.SYSTEM.write_text(pages)
    memory.take_large_pages()
    assert not started


def _no_such_name(name):
    raise ValueError("unrecognized configuration name")


@pytest.mark.parametrize("version", [_no_such_name, lambda _: "glibc 2.34", lambda _: None])
def test_a_library_that_cannot_be_told_is_not(started, monkeypatch, version):
    monkeypatch.setattr(memory.os, "confstr", version)
    memory.take_large_pages()
    assert not started


def test_a_system_without_the_file_is_not_asked(started, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "SYSTEM", tmp_path / "nowhere")
    memory.take_large_pages()
    assert not started


def test_a_command_keeps_its_words_input_and_exit_code():
    """Through the real exec, where this machine has it."""
    script = (
        "import sys; from esrjax import memory; memory.take_large_pages();"
        "print(memory.large_pages(), sys.argv[1:], sys.stdin.read()); sys.exit(3)"
    )
    environment = {key: value for key, value in os.environ.items() if key != memory.TUNABLES}
    command = [sys.executable, "-c", script, "a b", "--c"]
    done = subprocess.run(
        command, input="given", env=environment, text=True, stdout=subprocess.PIPE
    )
    can = memory._can_be_asked()
    assert (done.returncode, done.stdout) == (3, f"{can} ['a b', '--c'] given\n")
