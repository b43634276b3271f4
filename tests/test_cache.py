"""The persistent compilation cache of commands."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from esrjax import cache

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
    cache.enable_compilation_cache()
    assert os.environ[DIRECTORY] == "elsewhere" and not home.exists()


def test_unwritable_folder_disables_the_cache(home):
    home.write_text("in the way")
    cache.enable_compilation_cache()
    assert DIRECTORY not in os.environ
