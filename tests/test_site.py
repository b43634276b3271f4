"""The documentation site: it is built without warnings, and its reference is complete."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("docs_pages", ROOT / "tools/docs_pages.py")
docs_pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs_pages)


def test_site_is_built_without_warnings(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", tmp_path]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0 and not run.stderr, run.stderr
    text = (tmp_path / "reference/esrjax.training/index.html").read_text()
    assert "esrjax.training.train_state" in text


def test_every_command_and_option_is_on_the_page():
    page = docs_pages.commands_page()
    for text in ("## `esrjax method check`", "`--self-ensemble`", "`--resume`", "`RECIPE`"):
        assert text in page


def test_every_key_of_a_recipe_has_a_meaning():
    rows = [line for line in docs_pages.recipes_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 60
    assert [row for row in rows if row.endswith("|  |")] == []


def test_modules_of_the_api_exist():
    for package, names in docs_pages.API_MODULES.items():
        for name in names.split():
            assert (ROOT / package.replace(".", "/") / f"{name}.py").is_file(), name
