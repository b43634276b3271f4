"""What commands keep for the next one."""

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


def test_the_second_command_compiles_nothing_that_the_first_did(home, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "lr.png")

    def kept(name):
        words = ["upscale", str(tmp_path / "lr.png"), "-o", str(tmp_path / name)]
        subprocess.run([sys.executable, "-m", "esrjax", *words], check=True)
        return {path.name for path in (home / "esrjax/programs").iterdir()}

    first, second = kept("one.png"), kept("two.png")
    assert any(name.startswith("jit_") for name in first) and first == second
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_the_environment_decides(home, monkeypatch):
    monkeypatch.setenv(DIRECTORY, "elsewhere")
    cache.keep_programs()
    assert os.environ[DIRECTORY] == "elsewhere" and not home.exists()


def test_without_a_folder_to_write_to_nothing_is_kept(home):
    home.write_text("in the way")
    cache.keep_programs()
    assert DIRECTORY not in os.environ
