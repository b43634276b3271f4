"""The persistent compilation cache of commands, and their re-execution with huge pages."""

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from esrjax import runtime
from esrjax.errors import UnwritableFile
from esrjax.io import cache_dir

DIRECTORY = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(DIRECTORY)
    return tmp_path / "cache"


def test_second_command_uses_the_compilation_cache_of_the_first(home, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "lr.png")

    def cached_after(name):
        args = ["upscale", str(tmp_path / "lr.png"), "-o", str(tmp_path / name)]
        subprocess.run([sys.executable, "-m", "esrjax", *args], check=True)
        return {path.name for path in (home / "esrjax/programs").iterdir()}

    first, second = cached_after("one.png"), cached_after("two.png")
    assert any(name.startswith("jit_") for name in first) and first == second
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_environment_takes_precedence(home, monkeypatch):
    monkeypatch.setenv(DIRECTORY, "elsewhere")
    runtime.enable_compilation_cache()
    assert os.environ[DIRECTORY] == "elsewhere" and not home.exists()


@pytest.fixture
def temporary_cache(home, tmp_path, monkeypatch):
    """The cache of a user without a writable home; not created."""
    home.write_text("in the way")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"esrjax-{os.getuid()}"


def test_cache_of_a_user_without_home_is_a_private_temporary_folder(temporary_cache):
    runtime.enable_compilation_cache()
    assert os.environ[DIRECTORY] == str(temporary_cache / "programs")


def test_folder_that_others_can_write_to_is_no_cache(temporary_cache):
    temporary_cache.mkdir()
    temporary_cache.chmod(0o777)  # another user could put a program there
    runtime.enable_compilation_cache()
    assert DIRECTORY not in os.environ


def test_user_without_name_home_and_temporary_folder_has_no_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UnwritableFile, match="XDG_CACHE_HOME"):
        cache_dir("weights")


@pytest.mark.parametrize("is_folder", [False, True])
@pytest.mark.parametrize("action", ["reading", "writing"])
def test_entry_that_jax_cannot_use_is_removed(home, monkeypatch, caplog, action, is_folder):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    runtime.enable_compilation_cache()
    spoiled, sound = (Path(os.environ[DIRECTORY]) / f"jit_{n}-0f-cache" for n in "ab")
    sound.touch()
    spoiled.mkdir() if is_folder else spoiled.touch()
    text = f"Error {action} persistent compilation cache entry for 'jit_a': zlib.error: {home}"
    warnings.showwarning(UserWarning(text), UserWarning, "compiler.py", 1)
    assert sound.exists() and not spoiled.exists()
    assert str(home) in caplog.text and "Warning" not in caplog.text


def test_variables_without_an_effect_are_noted(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("ESRJAX_DAT", "x")
    monkeypatch.setenv("ESRJAX_DATA", str(tmp_path / "nowhere"))
    runtime.check_environment()
    misspelt, missing = (record.getMessage() for record in caplog.records)
    assert "ESRJAX_DAT " in misspelt and "'ESRJAX_DATA'" in misspelt
    assert "nowhere" in missing


# --- Huge pages: the command is executed again, once, where the system has them ---


@pytest.fixture
def exec_calls(monkeypatch, tmp_path):
    """The calls of `execv`, on a system whose huge pages are on request."""
    calls = []
    system = tmp_path / "enabled"
    system.write_text("always [madvise] never\n")
    monkeypatch.setattr(runtime, "THP_SETTING", system)
    monkeypatch.setattr(runtime.os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(runtime.os, "execv", lambda *call: calls.append(call))
    monkeypatch.setattr(runtime.os, "environ", {})
    monkeypatch.setattr(runtime.sys, "orig_argv", ["python3", "-m", "esrjax", "doctor"])
    # As in a process without pytest, which imports pdb and may be traced for its coverage.
    monkeypatch.setattr(runtime.sys, "gettrace", lambda: None)
    monkeypatch.setattr(runtime.sys, "getprofile", lambda: None)
    monkeypatch.setattr(runtime.sys, "monitoring", None, raising=False)
    for module in runtime.DEBUGGER_MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
    return calls


def test_command_is_executed_again_once(exec_calls):
    runtime.reexec_with_huge_pages()
    assert exec_calls == [(sys.executable, [sys.executable, "-m", "esrjax", "doctor"])]
    assert runtime.uses_huge_pages()
    runtime.reexec_with_huge_pages()
    assert len(exec_calls) == 1


@pytest.mark.parametrize("tunables", ["", "glibc.malloc.arena_max=1"])
def test_malloc_setting_of_the_user_takes_precedence(exec_calls, tunables):
    runtime.os.environ["GLIBC_TUNABLES"] = tunables
    runtime.reexec_with_huge_pages()
    assert not exec_calls and not runtime.uses_huge_pages()


@pytest.mark.parametrize("setting", ["[always] madvise never", "always madvise [never]"])
def test_modes_always_and_never_do_nothing(exec_calls, setting):
    runtime.THP_SETTING.write_text(setting)
    runtime.reexec_with_huge_pages()
    assert not exec_calls


@pytest.mark.parametrize("value, times", [("0", 0), ("1", 1), ("", 1)])
def test_variable_turns_huge_pages_off(exec_calls, value, times):
    runtime.os.environ["ESRJAX_HUGE_PAGES"] = value
    runtime.reexec_with_huge_pages()
    assert len(exec_calls) == times


def trace_function(*event):
    return None


class Monitoring:
    """`sys.monitoring` of Python 3.12, with one tool in use."""

    @staticmethod
    def get_tool(tool_id):
        return {2: "profiler"}.get(tool_id)


@pytest.mark.parametrize(
    "attribute, value",
    [
        ("gettrace", lambda: trace_function),
        ("getprofile", lambda: trace_function),
        ("monitoring", Monitoring),
    ],
)
def test_process_under_a_debugger_or_profiler_goes_on(exec_calls, monkeypatch, attribute, value):
    monkeypatch.setattr(runtime.sys, attribute, value, raising=False)
    runtime.reexec_with_huge_pages()
    assert not exec_calls and not runtime.uses_huge_pages()


@pytest.mark.parametrize("module", ["pdb", "cProfile", "debugpy", "coverage"])
def test_process_with_an_imported_debugger_goes_on(exec_calls, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, runtime)
    runtime.reexec_with_huge_pages()
    assert not exec_calls


def test_monitoring_without_a_tool_does_not_matter(exec_calls, monkeypatch):
    monkeypatch.setattr(Monitoring, "get_tool", staticmethod(lambda tool_id: None))
    monkeypatch.setattr(runtime.sys, "monitoring", Monitoring, raising=False)
    runtime.reexec_with_huge_pages()
    assert len(exec_calls) == 1


def _no_such_name(name):
    raise ValueError("unrecognized configuration name")


@pytest.mark.parametrize("version", [_no_such_name, lambda _: "glibc 2.34", lambda _: None])
def test_other_c_library_does_nothing(exec_calls, monkeypatch, version):
    monkeypatch.setattr(runtime.os, "confstr", version)
    runtime.reexec_with_huge_pages()
    assert not exec_calls


def test_system_without_the_setting_does_nothing(exec_calls, monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "THP_SETTING", tmp_path / "nowhere")
    runtime.reexec_with_huge_pages()
    assert not exec_calls


def test_command_keeps_its_arguments_input_and_exit_code():
    """With the real `execv`, where this machine supports it."""
    script = (
        "import sys; from esrjax import runtime; runtime.reexec_with_huge_pages();"
        "print(runtime.uses_huge_pages(), sys.argv[1:], sys.stdin.read()); sys.exit(3)"
    )
    environment = {key: value for key, value in os.environ.items() if key != runtime.TUNABLES_ENV}
    command = [sys.executable, "-c", script, "a b", "--c"]
    result = subprocess.run(
        command, input="given", env=environment, text=True, stdout=subprocess.PIPE
    )
    supported = runtime._supports_huge_pages()
    assert (result.returncode, result.stdout) == (3, f"{supported} ['a b', '--c'] given\n")
