"""Huge pages: the command is executed again, once, where the system has them."""

import os
import subprocess
import sys

import pytest

from esrjax import memory


@pytest.fixture
def exec_calls(monkeypatch, tmp_path):
    """The calls of `execv`, on a system whose huge pages are on request."""
    calls = []
    system = tmp_path / "enabled"
    system.write_text("always [madvise] never\n")
    monkeypatch.setattr(memory, "THP_SETTING", system)
    monkeypatch.setattr(memory.os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(memory.os, "execv", lambda *call: calls.append(call))
    monkeypatch.setattr(memory.os, "environ", {})
    monkeypatch.setattr(memory.sys, "orig_argv", ["python3", "-m", "esrjax", "doctor"])
    return calls


def test_command_is_executed_again_once(exec_calls):
    memory.reexec_with_huge_pages()
    assert exec_calls == [(sys.executable, [sys.executable, "-m", "esrjax", "doctor"])]
    assert memory.uses_huge_pages()
    memory.reexec_with_huge_pages()
    assert len(exec_calls) == 1


@pytest.mark.parametrize("tunables", ["", "glibc.malloc.arena_max=1"])
def test_environment_takes_precedence(exec_calls, tunables):
    memory.os.environ["GLIBC_TUNABLES"] = tunables
    memory.reexec_with_huge_pages()
    assert not exec_calls and not memory.uses_huge_pages()


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]"])
def test_modes_always_and_never_do_nothing(exec_calls, setting):
    memory.THP_SETTING.write_text(setting)
    memory.reexec_with_huge_pages()
    assert not exec_calls


def _no_such_name(name):
    raise ValueError("unrecognized configuration name")


@pytest.mark.parametrize("version", [_no_such_name, lambda _: "glibc 2.34", lambda _: None])
def test_other_c_library_does_nothing(exec_calls, monkeypatch, version):
    monkeypatch.setattr(memory.os, "confstr", version)
    memory.reexec_with_huge_pages()
    assert not exec_calls


def test_system_without_the_setting_does_nothing(exec_calls, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "THP_SETTING", tmp_path / "nowhere")
    memory.reexec_with_huge_pages()
    assert not exec_calls


def test_command_keeps_its_arguments_input_and_exit_code():
    """With the real `execv`, where this machine supports it."""
    script = (
        "import sys; from esrjax import memory; memory.reexec_with_huge_pages();"
        "print(memory.uses_huge_pages(), sys.argv[1:], sys.stdin.read()); sys.exit(3)"
    )
    environment = {key: value for key, value in os.environ.items() if key != memory.TUNABLES_ENV}
    command = [sys.executable, "-c", script, "a b", "--c"]
    result = subprocess.run(
        command, input="given", env=environment, text=True, stdout=subprocess.PIPE
    )
    supported = memory._supports_huge_pages()
    assert (result.returncode, result.stdout) == (3, f"{supported} ['a b', '--c'] given\n")
